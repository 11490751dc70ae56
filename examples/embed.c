/* embed - the library inside a program that keeps control: an allocator of its own, a log,
   progress, and a cancel button.

       cc -O2 -fopenmp -I. -Itools examples/embed.c -o embed -lm && ./embed

   Prints
       sampling: 1 of 20
       sampling: 2 of 20
       sampling: 3 of 20
       cancelled: sampling was cancelled after step 3 of 20
       after db_clear_error: sampling works again
       log: prompts longer than 77 tokens lost their ends: 1 of 1
       all memory was given back                                                                 */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct program {
    size_t blocks;     /* allocated and not yet released */
    int steps, cancel; /* cancel after so many steps; 0: never */
} program;

static void *allocate(void *user, size_t bytes)
{
    void *memory = malloc(bytes);
    ((program *)user)->blocks += memory != NULL;
    return memory;
}

static void release(void *user, void *memory)
{
    ((program *)user)->blocks -= memory != NULL;
    free(memory);
}

static void on_log(void *user, db_log_level level, const char *line)
{
    (void)user;
    if (level == DB_LOG_WARNING) printf("log: %s\n", line);
}

static int on_progress(void *user, const char *what, size_t done, size_t total)
{
    program *p = (program *)user;
    if (p->cancel) printf("%s: %d of %d\n", what, (int)done, (int)total);
    return p->cancel && ++p->steps == p->cancel; /* not 0: stop */
}

int main(void)
{
    static float picture[64 * 64 * 3];
    char long_prompt[1024] = "a dog";
    const char *prompt = "a blue teapot in the snow";
    program self = {0, 0, 0};
    db_config config = db_config_default();
    db_sample_config sampling = db_sample_config_default();
    db_ctx *ctx = NULL;
    db_pipeline *model = NULL;
    int k, bad;

    config.allocate = allocate, config.release = release; /* both or neither */
    config.log = on_log, config.progress = on_progress, config.user = &self;
    if (db_create(&ctx, &config) != DB_OK) return 1;
    if (db_pipeline_load(ctx, "examples/world/base", &model) != DB_OK) goto done;
    sampling.sampler = DB_SAMPLER_DDIM, sampling.guidance_scale = 1;

    self.cancel = 3, sampling.num_inference_steps = 20;
    if (db_generate(model, &prompt, 1, NULL, &sampling, 64, 64, picture) == DB_ERROR_CANCELLED)
        printf("cancelled: %s\n", db_last_error(ctx));
    db_clear_error(ctx); /* errors stay until they are cleared: nothing runs on half a result */

    self.cancel = 0, sampling.num_inference_steps = 2;
    if (db_generate(model, &prompt, 1, NULL, &sampling, 64, 64, picture) == DB_OK)
        printf("after db_clear_error: sampling works again\n");

    for (k = 0; k < 90; k++) strcat(long_prompt, " dog"); /* 77 tokens are the limit */
    prompt = long_prompt;
    db_generate(model, &prompt, 1, NULL, &sampling, 64, 64, picture);
done:
    bad = db_status(ctx) != DB_OK;
    if (bad) fprintf(stderr, "%s\n", db_last_error(ctx));
    db_pipeline_free(model);
    db_destroy(ctx);
    if (self.blocks == 0) printf("all memory was given back\n");
    return bad || self.blocks != 0;
}
