/* dreambooth - the method in one page: five photos of a subject and the class's own pictures in,
   a model that knows "a zxk dog" out, as a directory that diffusers loads.

       cc -O2 -fopenmp -I. -Itools examples/dreambooth.c -o dreambooth -lm && ./dreambooth 400

   The argument is the number of steps; 12 are enough to see that it runs. Losses go to stderr.

   Prints
       5 photos, 8 class images
       12 steps
       "a zxk dog in the snow" in subject.png, the model in subject-model                        */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "photos.h"

enum { CLASS_IMAGES = 8, SIZE = 64, PIXELS = SIZE * SIZE * 3 };

int main(int argc, char **argv)
{
    const char *class_prompt = "a dog", *prompt = "a zxk dog in the snow", *of_class[CLASS_IMAGES];
    static float class_images[CLASS_IMAGES * PIXELS], picture[PIXELS];
    db_ctx *ctx = NULL;
    db_pipeline *model = NULL;
    db_dreambooth *training = NULL;
    db_dreambooth_config config = db_dreambooth_config_default();
    db_dreambooth_losses loss = {0, 0, 0, 0, 0};
    db_sample_config sampling = db_sample_config_default();
    img_image image[MAX_PHOTOS];
    db_image photo[MAX_PHOTOS];
    size_t n = load_photos("examples/world/subjects/dog1", image, photo), k;
    int bad = 1;

    if (db_create(&ctx, NULL) != DB_OK) return 1;
    if (db_pipeline_load(ctx, "examples/world/base", &model) != DB_OK) goto done;

    /* 1. What "a dog" means to the model now: its own pictures, by the ancestral sampler. */
    for (k = 0; k < CLASS_IMAGES; k++) of_class[k] = class_prompt;
    sampling.sampler = DB_SAMPLER_DDPM, sampling.num_inference_steps = 10,
    sampling.guidance_scale = 1;
    sampling.seed = db_class_image_seed(class_prompt, 0);
    db_generate(model, of_class, CLASS_IMAGES, NULL, &sampling, SIZE, SIZE, class_images);
    printf("%d photos, %d class images\n", (int)n, CLASS_IMAGES);

    /* 2. Learn the subject from its photos, keep the class from its pictures. */
    config.instance_prompt = "a zxk dog", config.class_prompt = class_prompt;
    config.max_train_steps = argc > 1 ? (size_t)atoi(argv[1]) : 12;
    config.train_batch_size = config.class_batch_size = 2;
    config.learning_rate = 1e-4f;
    if (db_dreambooth_create(model, model, &config, photo, n, class_images, CLASS_IMAGES,
                             &training) != DB_OK) goto done;
    while ((k = db_dreambooth_steps_done(training)) < config.max_train_steps) {
        if (db_dreambooth_step(training, &loss) != DB_OK) goto done;
        if (k % 10 == 0)
            fprintf(stderr, "step %d: loss %.4f, of the photos %.4f, of the class images %.4f\n",
                    (int)k + 1, (double)loss.total, (double)loss.instance, (double)loss.prior);
    }
    printf("%d steps\n", (int)k);

    /* 3. The subject where no photo shows it. */
    sampling.sampler = DB_SAMPLER_DDIM, sampling.num_inference_steps = 20,
    sampling.guidance_scale = 3;
    sampling.seed = 1;
    db_generate(model, &prompt, 1, NULL, &sampling, SIZE, SIZE, picture);
    db_pipeline_save(model, "subject-model", DB_F16);
    if (db_status(ctx) == DB_OK && !save_picture(picture, SIZE, "subject.png")) {
        printf("\"%s\" in subject.png, the model in subject-model\n", prompt);
        bad = 0;
    }
done:
    if (db_status(ctx) != DB_OK) fprintf(stderr, "%s\n", db_last_error(ctx));
    db_dreambooth_free(training);
    db_pipeline_free(model);
    db_destroy(ctx);
    for (k = 0; k < n; k++) img_free(&image[k]);
    return bad;
}
