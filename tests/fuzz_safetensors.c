/* Fuzzes the safetensors reader of dreambooth.h: what opens has all of its tensors inside the file.

     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_safetensors.c \
         -o build/fuzz_safetensors -lm
     build/fuzz_safetensors -max_total_time=120                                                   */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    db_ctx *ctx;
    db_safetensors *st;
    size_t i, used = 0;
    if (db_create(&ctx, NULL) != DB_OK) return 0;
    if (db_safetensors_open_memory(ctx, "fuzz", data, size, &st) == DB_OK) {
        for (i = 0; i < db_safetensors_count(st); i++) {
            const db_file_tensor *t = db_safetensors_at(st, i);
            float *values = (float *)malloc((t->count ? t->count : 1) * sizeof *values);
            if ((const uint8_t *)t->data < data
                || (const uint8_t *)t->data + t->bytes > data + size) abort();
            if (db_safetensors_find(st, t->name) != t) abort();
            if (values) db_file_tensor_to_f32(t, values);
            free(values);
            used += t->bytes;
        }
        if (used > size) abort();
        db_safetensors_metadata(st, "format");
    }
    db_safetensors_close(st);
    if (ctx->live_bytes != 0) abort();
    db_destroy(ctx);
    return 0;
}
