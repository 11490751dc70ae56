/* Fuzzes the tokenizers of dreambooth.h. The input's first byte chooses: J for tokenizer.json, C
   for CLIP's vocabulary, a NUL and merges, else a SentencePiece model; whatever loads encodes some
   texts and the input's own last bytes.

     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_spiece.c -o build/fuzz_spiece -lm
     build/fuzz_spiece -max_total_time=120 CORPUS tests/golden/tokenizers                         */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = {"a photo of sks dog!", " e\xcc\x81 \xff 1,000 ",
                                        "\xef\xbd\xb6\xef\xbe\x9e"};
    db_ctx *ctx;
    db_tokenizer *tok = NULL;
    char text[65];
    int32_t ids[16];
    size_t i, n = size < 64 ? size : 64;
    const uint8_t *nul;
    if (size == 0 || db_create(&ctx, NULL) != DB_OK) return 0;
    if (data[0] == 'J') {
        db_tokenizer_load_json(ctx, "fuzz", (const char *)data + 1, size - 1, &tok);
    } else if (data[0] == 'C') {
        nul = (const uint8_t *)memchr(data, 0, size);
        if (nul)
            db_tokenizer_load_clip(ctx, "vocab", (const char *)data + 1, (size_t)(nul - data) - 1,
                                   "merges",
                                   (const char *)nul + 1, (size_t)(data + size - nul) - 1, &tok);
    } else {
        db_tokenizer_load_spiece(ctx, "fuzz", data, size, &tok);
    }
    if ((tok != NULL) && db_status(ctx) != DB_OK) abort();
    memcpy(text, data + size - n, n);
    text[n] = 0;
    for (i = 0; tok && i < 4; i++) {
        size_t count = db_tokenizer_split(tok, i < 3 ? texts[i] : text, ids, 16), k;
        for (k = 0; k < count && k < 16; k++)
            if (!db_tokenizer_piece(tok, ids[k])) abort();
    }
    db_tokenizer_free(tok);
    if (ctx->live_bytes != 0) abort();
    db_destroy(ctx);
    return 0;
}
