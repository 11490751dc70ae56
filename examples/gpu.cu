/* gpu - the GPU backend inside a .cu of yours, beside the library's object.

       gcc -O2 -fopenmp -DDREAMBOOTH_IMPLEMENTATION -x c -c dreambooth.h -o dreambooth.o
       nvcc -O2 -arch=native -I. examples/gpu.cu dreambooth.o -o gpu -Xcompiler -fopenmp && ./gpu

   Where there is no GPU it says why; else it

   Prints
       noise on the CPU and on cuda agree                                                      */
#include "dreambooth_cuda.cu"

#include <stdlib.h>

/* Four normal numbers drawn by a context's backend. */
static db_result draw(const db_backend *backend, float *z)
{
    db_config config = db_config_default();
    db_ctx *ctx;
    db_tape *tape;
    db_tensor noise;
    db_result r;
    size_t four = 4;
    config.backend = backend;
    r = db_create(&ctx, &config);
    if (r != DB_OK) return r;
    if (db_tape_create(ctx, &tape) == DB_OK) {
        noise = db_normal_like(tape, db_input(tape, DB_F32, 1, &four), 1000);
        db_keep(tape, noise);
        db_run(tape, 42, 0);
        db_download(tape, noise, z);
    }
    r = db_status(ctx);
    if (r != DB_OK) printf("%s\n", db_last_error(ctx));
    db_tape_destroy(tape);
    db_destroy(ctx);
    return r;
}

int main(void)
{
    const char *why;
    const db_backend *cuda = db_backend_cuda(&why);
    float cpu[4], gpu[4];
    int k, same = 1;
    if (!cuda) {
        printf("%s\n", why);
        return 0;
    }
    if (draw(NULL, cpu) != DB_OK || draw(cuda, gpu) != DB_OK) return 1;
    for (k = 0; k < 4; k++) same &= fabsf(cpu[k] - gpu[k]) < 1e-6f;
    printf(same ? "noise on the CPU and on %s agree\n" : "noise on the CPU and on %s differ\n",
           cuda->name);
    return !same;
}
