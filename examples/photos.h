/* photos.h - what several examples share: a folder of photos as the library takes them, and a
   picture written as PNG. Uses tools/images.h; a program of yours may have its own. */
#define IMAGES_IMPLEMENTATION
#include "images.h"

enum { MAX_PHOTOS = 5 };

/* Loads FOLDER/00.png ... 04.png; returns how many there are. Free each with img_free. */
static inline size_t load_photos(const char *folder, img_image *image, db_image *photo)
{
    char path[512], err[IMG_ERROR_SIZE];
    size_t n = 0;
    for (; n < MAX_PHOTOS; n++) {
        snprintf(path, sizeof path, "%s/%02d.png", folder, (int)n);
        if (img_load(path, &image[n], err, sizeof err) != IMG_OK) break;
        photo[n].rgb = image[n].rgb, photo[n].w = image[n].w, photo[n].h = image[n].h;
    }
    return n;
}

/* Writes pixels [size][size][3] in [-1,1]. */
static inline int save_picture(const float *pixels, size_t size, const char *path)
{
    unsigned char *rgb = (unsigned char *)malloc(size * size * 3);
    char err[IMG_ERROR_SIZE];
    int bad;
    db_to_rgb(pixels, size * size * 3, rgb);
    bad = img_save_png(path, rgb, size, size, err, sizeof err) != IMG_OK;
    free(rgb);
    if (bad) fprintf(stderr, "%s\n", err);
    return bad;
}
