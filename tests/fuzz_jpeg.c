/* Fuzzes JPEG reading.

       clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_jpeg.c -o build/fuzz_jpeg -lm
       python3 tests/golden/make_images.py --files corpus
       build/fuzz_jpeg -max_len=4096 -max_total_time=300 corpus                                      */

#define IMAGES_IMPLEMENTATION
#include "../tools/images.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char why[IMG_ERROR_SIZE];
    img_image image;
    img_result result = img_load_memory(data, size, "fuzz", &image, why, sizeof why);
    /* Success and only success gives a picture and no message. */
    if ((result == IMG_OK) != (image.rgb != NULL) || (result == IMG_OK) != (why[0] == 0))
        abort();
    img_free(&image);
    return 0;
}
