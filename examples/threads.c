/* threads - two contexts in two threads of the program: they share nothing, so nothing is locked.

       cc -O2 -fopenmp -pthread -I. examples/threads.c -o threads -lm && ./threads

   Prints
       two threads drew "a purple bear on the beach": the same picture
       a failure in one context is unknown to the other                                          */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct worker {
    db_ctx *ctx;
    float picture[64 * 64 * 3];
} worker;

static const char *prompt = "a purple bear on the beach";

static void *work(void *argument)
{
    worker *w = (worker *)argument;
    db_config config = db_config_default();
    db_sample_config sampling = db_sample_config_default();
    db_pipeline *model = NULL;
    config.threads = 1; /* of OpenMP, for each of the two */
    if (db_create(&w->ctx, &config) != DB_OK) return NULL;
    sampling.num_inference_steps = 5, sampling.seed = 3;
    if (db_pipeline_load(w->ctx, "examples/world/base", &model) == DB_OK)
        db_generate(model, &prompt, 1, NULL, &sampling, 64, 64, w->picture);
    if (db_status(w->ctx) != DB_OK) fprintf(stderr, "%s\n", db_last_error(w->ctx));
    db_pipeline_free(model);
    return NULL;
}

int main(void)
{
    static worker both[2];
    pthread_t thread[2];
    db_pipeline *none = NULL;
    int k, same = 0, started[2];
    for (k = 0; k < 2; k++) started[k] = !pthread_create(&thread[k], NULL, work, &both[k]);
    for (k = 0; k < 2; k++)
        if (started[k]) pthread_join(thread[k], NULL);
    for (k = 0; k < 2; k++)
        if (!both[k].ctx || db_status(both[k].ctx) != DB_OK) goto done;
    same = !memcmp(both[0].picture, both[1].picture, sizeof both[0].picture);
    printf("two threads drew \"%s\": %s\n", prompt,
           same ? "the same picture" : "different pictures");
    db_pipeline_load(both[0].ctx, "examples/world/nothing", &none);
    if (db_status(both[0].ctx) != DB_OK && db_status(both[1].ctx) == DB_OK)
        printf("a failure in one context is unknown to the other\n");
done:
    for (k = 0; k < 2; k++) db_destroy(both[k].ctx);
    return !same;
}
