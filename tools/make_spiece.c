/* make_spiece - writes a SentencePiece vocabulary (spiece.model) from a list of words.

     make_spiece --words FILE --rare FILE --out spiece.model [--size N]

   --words  lines "word count" (or "word" alone), such as `build/world words` prints
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

/* Lines of a file, split at the first blank; the texts live as long as the program. */
static spiece_word *read_words(const char *path, size_t *count)
{
    spiece_word *words = NULL;
    size_t capacity = 0;
    char line[1024], text[1024];
    FILE *f = fopen(path, "rb");
    if (!f) fail("cannot open ", path);
    *count = 0;
    while (fgets(line, sizeof line, f)) {
        double n = 1;
        if (sscanf(line, "%1023s %lf", text, &n) < 1) continue; /* an empty line */
        if (*count == capacity) {
            capacity = capacity ? capacity * 2 : 256;
            words = (spiece_word *)realloc(words, capacity * sizeof *words);
            if (!words) fail("out of memory", "");
        }
        words[*count].text = (const char *)memcpy(malloc(strlen(text) + 1), text, strlen(text) + 1);
        words[(*count)++].count = n;
    }
    fclose(f);
    return words;
}

int main(int argc, char **argv)
{
    const char *out = NULL;
    spiece_word *words = NULL, *rare = NULL;
    const char **rare_texts;
    size_t word_count = 0, rare_count = 0, multiple = 0, pieces, i;
    int a;
    for (a = 1; a < argc; a += 2) {
        if (a + 1 == argc) fail("a value must follow ", argv[a]);
        if (!strcmp(argv[a], "--words")) words = read_words(argv[a + 1], &word_count);
        else if (!strcmp(argv[a], "--rare")) rare = read_words(argv[a + 1], &rare_count);
        else if (!strcmp(argv[a], "--out")) out = argv[a + 1];
        else if (!strcmp(argv[a], "--size")) multiple = strtoul(argv[a + 1], NULL, 10);
        else fail("unknown flag (--words --rare --out --size): ", argv[a]);
    }
    if (!out) fail("--out FILE is missing", "");
    rare_texts = (const char **)malloc((rare_count + 1) * sizeof *rare_texts);
    if (!rare_texts) fail("out of memory", "");
    for (i = 0; i < rare_count; i++) rare_texts[i] = rare[i].text;
    pieces = spiece_write(out, words, word_count, rare_texts, rare_count, multiple);
    if (!pieces) fail("cannot write ", out);
    printf("%s: %lu pieces\n", out, (unsigned long)pieces);
    return 0;
}
