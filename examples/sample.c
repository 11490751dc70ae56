/* sample - draws a picture of a prompt with the shipped model, in one page.

       cc -O2 -fopenmp -I. -Itools examples/sample.c -o sample -lm && ./sample

   Prints
       a 64 x 64 picture of "a red dog on the beach" in sample.png                               */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "photos.h"

int main(int argc, char **argv)
{
    const char *prompt = argc > 1 ? argv[1] : "a red dog on the beach";
    db_ctx *ctx = NULL;
    db_pipeline *model = NULL;
    db_sample_config config = db_sample_config_default();
    static float picture[64 * 64 * 3]; /* [64][64][3], red, green, blue from -1 to 1 */
    int bad;

    if (db_create(&ctx, NULL) != DB_OK) return 1;
    db_pipeline_load(ctx, "examples/world/base", &model);

    config.sampler = DB_SAMPLER_DDIM;
    config.num_inference_steps = 20;
    config.guidance_scale = 3;
    config.seed = 1;
    if (model) db_generate(model, &prompt, 1, NULL, &config, 64, 64, picture);

    bad = db_status(ctx) != DB_OK; /* one look at the end: after a failure the rest does nothing */
    if (bad) fprintf(stderr, "%s\n", db_last_error(ctx));
    else if (!(bad = save_picture(picture, 64, "sample.png")))
        printf("a 64 x 64 picture of \"%s\" in sample.png\n", prompt);
    db_pipeline_free(model);
    db_destroy(ctx);
    return bad;
}
