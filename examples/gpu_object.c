/* gpu_object - a C program that links the GPU backend as an object, and works where there is none.

       nvcc -O2 -arch=native -c dreambooth_cuda.cu
       cc -O2 -fopenmp -I. -DDB_CUDA examples/gpu_object.c dreambooth_cuda.o -o gpu_object \
           -L/usr/local/cuda/lib64 -lcudart_static -lstdc++ -ldl -lrt -lpthread -lm && ./gpu_object

   Prints
       5 * 3 = 15                                                                              */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <stdio.h>

int main(void)
{
    db_config config = db_config_default();
    const char *why = "built without the GPU backend";
    db_ctx *ctx;
    db_tape *tape;
    db_tensor a, b, product;
    size_t one = 1;
    float five = 5, three = 3, y = 0;
#ifdef DB_CUDA
    config.backend = db_backend_cuda(&why); /* NULL: the CPU */
#endif
    if (!config.backend) fprintf(stderr, "on the CPU: %s\n", why);
    if (db_create(&ctx, &config) != DB_OK) return 1;
    if (db_tape_create(ctx, &tape) == DB_OK) {
        a = db_input(tape, DB_F32, 1, &one), b = db_input(tape, DB_F32, 1, &one);
        product = db_multiply(tape, a, b);
        db_keep(tape, product);
        db_upload(tape, a, &five), db_upload(tape, b, &three);
        db_run(tape, 0, 0);
        db_download(tape, product, &y);
    }
    if (db_status(ctx) != DB_OK) fprintf(stderr, "%s\n", db_last_error(ctx));
    else printf("5 * 3 = %g\n", (double)y);
    db_tape_destroy(tape);
    db_destroy(ctx);
    return y != 15;
}
