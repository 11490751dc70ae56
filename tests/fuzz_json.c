/* Fuzzes the JSON parser of dreambooth.h: bytes are a tree or an error, and a tree is consistent.

     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_json.c -o build/fuzz_json -lm
     build/fuzz_json -max_total_time=120                                                          */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Walks the tree; returns how many nodes it has. */
static size_t walk(const db_json *node)
{
    const db_json *item;
    size_t children = 0, total = 1;
    for (item = node->first; item; item = item->next, children++) {
        total += walk(item);
        if ((item->key != NULL) != (node->type == DB_JSON_OBJECT)) abort();
        if (item->key && item->key[item->key_length] != 0) abort();
    }
    if (children != node->count) abort();
    if (node->type == DB_JSON_STRING && node->string[node->length] != 0) abort();
    if (node->is_integer && (double)node->integer != node->number) abort();
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    db_ctx *ctx;
    const db_json *root;
    if (db_create(&ctx, NULL) != DB_OK) return 0;
    root = db_json_parse(ctx, "fuzz", (const char *)data, size);
    if ((root != NULL) != (db_status(ctx) == DB_OK)) abort();
    if (root) walk(root);
    db_json_int(root, "a", 0);
    db_json_string(root, "a", NULL);
    db_json_free(root);
    if (ctx->live_bytes != 0) abort();
    db_destroy(ctx);
    return 0;
}
