/* make_spiece - writes a SentencePiece vocabulary (spiece.model) from a list of words.

     make_spiece --words FILE --rare FILE --out spiece.model [--size N]

   --words  lines "word count" (or "word" alone); the shipped vocabulary is made by `build/pretrain
            vocabulary`
   --rare   lines "piece": reserved words without meaning, candidates for identifiers
   --size   fills the vocabulary up to a multiple of N with unused pieces
   Either list may be missing. What goes where and why: spiece.h.

   cc -std=c99 -O2 tools/make_spiece.c -o build/make_spiece -lm                                  */

#define SPIECE_IMPLEMENTATION
#include "spiece.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "make_spiece: %s%s\n", what, which);
    exit(1);
}

static void *grow(void *memory, size_t bytes)
{
    memory = realloc(memory, bytes);
    if (!memory) fail("out of memory", "");
    return memory;
}

/* A list of words and the memory of its texts, which the words point into. */
typedef struct word_list {
    spiece_word *word;
    size_t count;
    char *texts;
} word_list;

/* Lines of a file "word count", "word", or blank. */
static word_list read_words(const char *path)
{
    word_list list = {NULL, 0, NULL};
    char line[1024], text[1024];
    size_t used = 0, i;
    FILE *f = fopen(path, "rb");
    if (!f) fail("cannot open ", path);
    while (fgets(line, sizeof line, f)) {
        double n = 1;
        if (sscanf(line, "%1023s %lf", text, &n) < 1) continue;
        list.word = (spiece_word *)grow(list.word, (list.count + 1) * sizeof *list.word);
        list.texts = (char *)grow(list.texts, used + strlen(text) + 1);
        strcpy(list.texts + used, text);
        used += strlen(text) + 1;
        list.word[list.count++].count = n;
    }
    fclose(f);
    for (i = 0, used = 0; i < list.count; i++) { /* now the texts move no more */
        list.word[i].text = list.texts + used;
        used += strlen(list.word[i].text) + 1;
    }
    return list;
}

static void free_words(word_list *list)
{
    free(list->word);
    free(list->texts);
}

int main(int argc, char **argv)
{
    const char *out = NULL, **rare_texts;
    word_list words = {NULL, 0, NULL}, rare = {NULL, 0, NULL};
    size_t multiple = 0, pieces, i;
    int a;
    for (a = 1; a < argc; a += 2) {
        if (a + 1 == argc) fail("a value must follow ", argv[a]);
        if (!strcmp(argv[a], "--words")) words = read_words(argv[a + 1]);
        else if (!strcmp(argv[a], "--rare")) rare = read_words(argv[a + 1]);
        else if (!strcmp(argv[a], "--out")) out = argv[a + 1];
        else if (!strcmp(argv[a], "--size")) multiple = strtoul(argv[a + 1], NULL, 10);
        else fail("unknown flag (--words --rare --out --size): ", argv[a]);
    }
    if (!out) fail("--out FILE is missing", "");
    rare_texts = (const char **)grow(NULL, (rare.count + 1) * sizeof *rare_texts);
    for (i = 0; i < rare.count; i++) rare_texts[i] = rare.word[i].text;
    pieces = spiece_write(out, words.word, words.count, rare_texts, rare.count, multiple);
    if (!pieces) fail("cannot write ", out);
    printf("%s: %lu pieces\n", out, (unsigned long)pieces);
    free((void *)rare_texts);
    free_words(&words);
    free_words(&rare);
    return 0;
}
