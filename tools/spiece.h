/* spiece.h - writes a SentencePiece unigram model (spiece.model) for a known list of words.

   In ONE C file:   #define SPIECE_IMPLEMENTATION
                    #include "spiece.h"

   A SentencePiece model is normally trained: pieces are searched until they explain a corpus well.
   Where every word is known beforehand (the shipped world's captions), the vocabulary can be
   written down: each word is one piece, its score is the logarithm of its relative frequency, and
   single characters stand by, so that no ASCII text is unknown. sentencepiece, transformers'
   T5Tokenizer and dreambooth.h read the result.

       id 0 <pad>   1 </s>   2 <unk>          as T5 has them
       3 ...        U+2581 (the space) and "U+2581 word", the most frequent first
       then         reserved rare pieces      "U+2581 xyz": words that mean nothing
       then         all printable ASCII characters, with U+2581 (unless a word already) and without
       then         unused pieces, if the size must be a multiple of something

   The cut with the largest sum of scores wins, and a word ("cats", or a reserved piece) must win
   against a shorter one and letters ("cat", "s"), however rare it is. So words lie between 0 and
   -16, reserved pieces, the rarest of words, at -17, and a single character costs more than any of
   them: -19, or -20 with a space in front.

   The normaliser is the identity (capital letters stay): no table, one space in front, runs of
   spaces and spaces at both ends removed.                                                        */

#ifndef SPIECE_H
#define SPIECE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spiece_word {
    const char *text; /* without U+2581; UTF-8 */
    double count;     /* occurrences; 0 counts as 1 */
} spiece_word;

/* Writes the model of `words` and `rare` (texts only; either may be empty) to `path`. The number of
   pieces is filled up to a multiple of `multiple` (0 or 1: not). The counts of a word that comes
   twice are added; a reserved piece that is also a word is a word. Returns the number of pieces, or
   0 when memory or the disk failed. */
size_t spiece_write(const char *path, const spiece_word *words, size_t word_count,
                    const char *const *rare, size_t rare_count, size_t multiple);

#ifdef __cplusplus
}
#endif
#endif /* SPIECE_H */

#ifdef SPIECE_IMPLEMENTATION

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const float spiece__lowest_word = -16.0f;    /* no word is rarer, to the model  */
static const float spiece__rare = -17.0f;           /* reserved pieces                 */
static const float spiece__spaced_letter = -20.0f;  /* "U+2581 a"                      */
static const float spiece__letter = -19.0f;         /* "a"                             */

enum { SPIECE__NORMAL = 1, SPIECE__UNKNOWN = 2, SPIECE__CONTROL = 3, SPIECE__UNUSED = 5 };

/* Bytes that grow; `failed` sticks. */
typedef struct spiece__bytes {
    unsigned char *data;
    size_t length, capacity;
    int failed;
} spiece__bytes;

static void spiece__put(spiece__bytes *b, const void *data, size_t n)
{
    if (b->length + n > b->capacity && !b->failed) {
        size_t capacity = (b->length + n) * 2;
        unsigned char *grown = (unsigned char *)realloc(b->data, capacity);
        if (!grown) b->failed = 1;
        else b->data = grown, b->capacity = capacity;
    }
    if (b->failed || n == 0) return;
    memcpy(b->data + b->length, data, n);
    b->length += n;
}

/* Protobuf: a varint; a field of varint type; a field with bytes; a field with a float. */
static void spiece__varint(spiece__bytes *b, uint64_t v)
{
    do {
        unsigned char c = (unsigned char)(v & 0x7F) | (v > 0x7F ? 0x80 : 0);
        spiece__put(b, &c, 1);
        v >>= 7;
    } while (v);
}

static void spiece__number(spiece__bytes *b, unsigned field, uint64_t v)
{
    spiece__varint(b, field << 3);
    spiece__varint(b, v);
}

static void spiece__string(spiece__bytes *b, unsigned field, const void *data, size_t n)
{
    spiece__varint(b, field << 3 | 2);
    spiece__varint(b, n);
    spiece__put(b, data, n);
}

static void spiece__float(spiece__bytes *b, unsigned field, float f)
{
    uint32_t bits;
    unsigned char le[4];
    int i;
    memcpy(&bits, &f, 4);
    for (i = 0; i < 4; i++) le[i] = (unsigned char)(bits >> 8 * i);
    spiece__varint(b, field << 3 | 5);
    spiece__put(b, le, 4);
}

/* One piece: field 1 of the model {1 text, 2 score, 3 type}; `space` puts U+2581 in front. */
static void spiece__piece(spiece__bytes *model, int space, const char *text, float score, int type)
{
    spiece__bytes piece, full;
    memset(&piece, 0, sizeof piece);
    memset(&full, 0, sizeof full);
    if (space) spiece__put(&full, "\xe2\x96\x81", 3);
    spiece__put(&full, text, strlen(text));
    spiece__string(&piece, 1, full.data, full.length);
    spiece__float(&piece, 2, score);
    if (type != SPIECE__NORMAL) spiece__number(&piece, 3, (uint64_t)type);
    model->failed |= piece.failed | full.failed;
    if (!model->failed) spiece__string(model, 1, piece.data, piece.length);
    free(piece.data);
    free(full.data);
}

static int spiece__by_text(const void *a, const void *b)
{
    return strcmp(((const spiece_word *)a)->text, ((const spiece_word *)b)->text);
}

static int spiece__by_count(const void *a, const void *b)
{
    double x = ((const spiece_word *)a)->count, y = ((const spiece_word *)b)->count;
    return x > y ? -1 : x < y ? 1 : spiece__by_text(a, b);
}

/* Settings: field 2 is the trainer's, 3 the normaliser's, as sentencepiece numbers them. */
static void spiece__settings(spiece__bytes *model, size_t pieces)
{
    spiece__bytes s;
    memset(&s, 0, sizeof s);
    spiece__number(&s, 3, 1);                      /* model_type: unigram       */
    spiece__number(&s, 4, pieces);                 /* vocab_size                */
    spiece__number(&s, 40, 2);                     /* unk_id                    */
    spiece__number(&s, 41, (uint64_t)(int64_t)-1); /* bos_id: none              */
    spiece__number(&s, 42, 1);                     /* eos_id                    */
    spiece__number(&s, 43, 0);                     /* pad_id                    */
    model->failed |= s.failed;
    if (!model->failed) spiece__string(model, 2, s.data, s.length);
    s.length = 0;
    spiece__string(&s, 1, "identity", 8);          /* name                      */
    spiece__number(&s, 3, 1);                      /* add_dummy_prefix          */
    spiece__number(&s, 4, 1);                      /* remove_extra_whitespaces  */
    spiece__number(&s, 5, 1);                      /* escape_whitespaces        */
    model->failed |= s.failed;
    if (!model->failed) spiece__string(model, 3, s.data, s.length);
    free(s.data);
}

static int spiece__save(const char *path, const spiece__bytes *model)
{
    FILE *f = fopen(path, "wb");
    int ok = f && fwrite(model->data, 1, model->length, f) == model->length;
    if (f && fclose(f) != 0) ok = 0;
    return ok;
}

size_t spiece_write(const char *path, const spiece_word *words, size_t word_count,
                    const char *const *rare, size_t rare_count, size_t multiple)
{
    spiece_word *all = (spiece_word *)calloc(word_count + rare_count + 1, sizeof *all);
    spiece__bytes model;
    size_t i, n = 0, kept = 0, pieces = 4;
    double total = 0;
    unsigned char is_word[256];
    int c;
    memset(&model, 0, sizeof model);
    memset(is_word, 0, sizeof is_word);
    if (!all) return 0;

    /* Words and rare pieces (count -1) in one list, each text once; a word beats a rare piece. */
    for (i = 0; i < word_count; i++, n++) {
        all[n] = words[i];
        if (!(all[n].count > 0)) all[n].count = 1;
    }
    for (i = 0; i < rare_count; i++, n++) all[n].text = rare[i], all[n].count = -1;
    qsort(all, n, sizeof *all, spiece__by_text);
    for (i = 0; i < n; i++) {
        spiece_word *last = kept ? &all[kept - 1] : NULL;
        if (!all[i].text[0]) continue;
        if (!last || strcmp(last->text, all[i].text) != 0) all[kept++] = all[i];
        else if (last->count > 0 && all[i].count > 0) last->count += all[i].count;
        else if (all[i].count > 0) last->count = all[i].count;
    }
    qsort(all, kept, sizeof *all, spiece__by_count);
    for (i = 0; i < kept; i++) total += all[i].count > 0 ? all[i].count : 0;

    spiece__piece(&model, 0, "<pad>", 0, SPIECE__CONTROL);
    spiece__piece(&model, 0, "</s>", 0, SPIECE__CONTROL);
    spiece__piece(&model, 0, "<unk>", 0, SPIECE__UNKNOWN);
    spiece__piece(&model, 1, "", spiece__letter, SPIECE__NORMAL);
    for (i = 0; i < kept; i++, pieces++) {
        float score = spiece__rare;
        if (all[i].count > 0) score = (float)log(all[i].count / total);
        if (all[i].count > 0 && score < spiece__lowest_word) score = spiece__lowest_word;
        spiece__piece(&model, 1, all[i].text, score, SPIECE__NORMAL);
        if (!all[i].text[1]) is_word[(unsigned char)all[i].text[0]] = 1;
    }
    for (c = '!'; c < 0x7F; c++) {
        char text[2];
        text[0] = (char)c;
        text[1] = 0;
        if (!is_word[c]) spiece__piece(&model, 1, text, spiece__spaced_letter, SPIECE__NORMAL);
        spiece__piece(&model, 0, text, spiece__letter, SPIECE__NORMAL);
        pieces += is_word[c] ? 1 : 2;
    }
    for (i = 0; multiple > 1 && pieces % multiple != 0; i++, pieces++) {
        char text[32];
        snprintf(text, sizeof text, "<unused_%lu>", (unsigned long)i);
        spiece__piece(&model, 0, text, 0, SPIECE__UNUSED);
    }
    spiece__settings(&model, pieces);
    if (model.failed || !spiece__save(path, &model)) pieces = 0;
    free(model.data);
    free(all);
    return pieces;
}

#endif /* SPIECE_IMPLEMENTATION */
