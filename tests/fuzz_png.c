/* Fuzzes PNG reading and writing.

       clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_png.c -o build/fuzz_png -lm
       python3 tests/golden/make_images.py --files corpus
       build/fuzz_png -max_len=4096 -max_total_time=300 corpus

   Checksums would stop nearly every input at the door, so the first byte chooses what it becomes:
     0x89     a PNG file, whose chunks get correct checksums first
     even     header fields, palette and unfiltered rows, wrapped into a sound PNG file
     odd      pixels, which must survive writing and reading                                     */

#define IMAGES_IMPLEMENTATION
#include "../tools/images.h"

/* Reads a file that may be anything; it only has to return. */
static void load(const uint8_t *data, size_t size)
{
    char why[IMG_ERROR_SIZE];
    img_image image;
    img_result result = img_load_memory(data, size, "fuzz", &image, why, sizeof why);
    if ((result == IMG_OK) != (image.rgb != NULL) || (result == IMG_OK) != (why[0] == 0))
        abort();
    img_free(&image);
}

static void load_with_checksums(const uint8_t *data, size_t size)
{
    uint8_t *copy = (uint8_t *)malloc(size);
    size_t at = 8;
    int i;
    memcpy(copy, data, size);
    while (size - at >= 12 && at < size) {
        size_t length = img__u32be(copy + at);
        uint32_t crc;
        if (length > size - at - 12)
            break;
        crc = img__crc32(copy + at + 4, length + 4);
        for (i = 0; i < 4; i++)
            copy[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += length + 12;
    }
    load(copy, size);
    free(copy);
}

static void put_chunk(img__writer *w, const char *type, const uint8_t *data, size_t size)
{
    size_t start = img__begin_chunk(w, type), i;
    for (i = 0; i < size; i++)
        img__put_byte(w, data[i]);
    img__end_chunk(w, start);
}

/* data: width, height, depth, colour type, interlacing, sizes of palette and transparency; each. */
static void load_wrapped(const uint8_t *data, size_t size)
{
    img__job job = img__begin("wrap", NULL, 0);
    img__writer w;
    size_t palette = data[6] % 86 * 3, alpha = data[7] % 65, at = 8, i, start;
    uint8_t header[13] = { 0, 0, 0, data[1], 0, 0, 0, data[2], data[3], data[4], 0, 0, data[5] };
    if (palette > size - at)
        palette = 0;
    if (alpha > size - at - palette)
        alpha = 0;
    memset(&w, 0, sizeof w);
    w.job = &job;
    for (i = 0; i < 8; i++)
        img__put_byte(&w, img__png_signature[i]);
    put_chunk(&w, "IHDR", header, 13);
    if (palette)
        put_chunk(&w, "PLTE", data + at, palette);
    at += palette;
    if (alpha)
        put_chunk(&w, "tRNS", data + at, alpha);
    at += alpha;
    start = img__begin_chunk(&w, "IDAT");
    img__put_byte(&w, 0x78);
    img__put_byte(&w, 0xDA);
    img__deflate(&w, data + at, size - at);
    img__put_u32be(&w, img__adler32(data + at, size - at));
    img__end_chunk(&w, start);
    put_chunk(&w, "IEND", NULL, 0);
    load(w.data, w.size);
    free(w.data);
}

static void round_trip(const uint8_t *data, size_t size)
{
    size_t w = 1 + data[1] % 40, h = size / 3 / w, png_size;
    uint8_t *png;
    img_image image;
    if (h == 0)
        return;
    if (img_encode_png(data, w, h, &png, &png_size, NULL, 0) != IMG_OK
        || img_load_memory(png, png_size, "fuzz", &image, NULL, 0) != IMG_OK
        || image.w != w || image.h != h || memcmp(image.rgb, data, w * h * 3) != 0)
        abort();
    img_free(&image);
    img_free_png(png);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 8)
        load(data, size);
    else if (data[0] == 0x89)
        load_with_checksums(data, size);
    else if (data[0] % 2 == 0)
        load_wrapped(data, size);
    else
        round_trip(data, size);
    return 0;
}
