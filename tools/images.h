/* images.h - reads PNG and JPEG, writes PNG, resizes, draws grids and plots. C99 or C++17, libm.

   DO THIS, in one source file, before any other include:

       #define IMAGES_IMPLEMENTATION
       #include "images.h"

   and plain #include "images.h" elsewhere. A complete program, photo in, 64 x 64 picture out:

       int main(void)
       {
           char why[IMG_ERROR_SIZE];
           img_image photo = {0}, small = {0};
           if (img_load("dog.jpg", &photo, why, sizeof why) ||
               img_resize(photo.rgb, photo.w, photo.h, 64, 64, &small, why, sizeof why) ||
               img_save_png("small.png", small.rgb, small.w, small.h, why, sizeof why))
               fprintf(stderr, "%s\n", why);
           img_free(&photo);
           img_free(&small);
           return 0;
       }

   MANUAL

   Pixels    Always 8-bit RGB, rows from the top: rgb[(y*w + x)*3 + c] is channel c (red, green,
             blue) of the pixel in column x of row y, 0..255. No row padding. Sides of 1 to 16384
             pixels, at most 2^27 in all. No colour management: profiles and gamma are ignored.
   Reading   PNG: every depth, colour type and interlacing; transparency becomes white paper.
             JPEG: baseline, extended and progressive Huffman, 8 bits; grey, YCbCr, RGB, CMYK, YCCK;
             results equal libjpeg's default decoder. The EXIF orientation of either is applied.
             A file that is cut short, fails a checksum or breaks its format is refused, not
             patched up; but JPEG has no checksums, so not all damage to it can be noticed.
   Writing   PNG. Equal pixels give equal bytes, on every machine.
   Memory    Pixels come in as (rgb, w, h) and stay the caller's. Pixels go out in an img_image that
             owns them: release it with img_free. An image given for output is overwritten, not
             released; after a failure it is empty, and img_free on it is harmless.
   Errors    Functions that can fail return an img_result: IMG_OK is 0. They take (err, errsize), a
             buffer for a sentence that says which file, what was wrong and what to do; it is empty
             after success, and (NULL, 0) is allowed. Nothing is printed, nothing exits.
   Threads   No global state: calls with different outputs may run at the same time.
   Macros    IMAGES_IMPLEMENTATION   also compile the implementation here
             IMAGES_STATIC           all functions static, for use inside one source file
             IMG_MALLOC IMG_REALLOC IMG_FREE   own allocator: define all three or none

   CONTENTS (search for the tag)
       [IMG-01] Errors, memory, checked sizes     [IMG-07] Loading
       [IMG-02] Deflate: compression              [IMG-08] Crop and resize
       [IMG-03] PNG: writing                      [IMG-09] Canvas and font
       [IMG-04] Inflate: decompression            [IMG-10] Labelled grid
       [IMG-05] PNG: reading                      [IMG-11] Line plot
       [IMG-06] JPEG: reading                                                                     */

#ifndef IMAGES_H
#define IMAGES_H

#if defined(IMAGES_IMPLEMENTATION) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* strict C99 hides fsync and fileno; goes before any system header */
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef IMAGES_STATIC
#define IMG_API static inline
#else
#define IMG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Results ----------------------------------------------------------------------------------
   One row per result: name, what happened, what the user can do about it.                        */

#define IMG_RESULTS(X)                                                                             \
    X(IMG_OK,                "success",                       "")                                  \
    X(IMG_ERROR_ARGUMENT,    "an argument is out of range",   "correct the call")                  \
    X(IMG_ERROR_FILE,        "file access failed",            "check path, permissions and space") \
    X(IMG_ERROR_FORMAT,      "neither PNG nor JPEG",          "convert it to PNG or JPEG")         \
    X(IMG_ERROR_UNSUPPORTED, "a kind that cannot be read",    "save it again as plain PNG or JPEG")\
    X(IMG_ERROR_CORRUPT,     "the file is damaged",           "copy or export it again")           \
    X(IMG_ERROR_SIZE_LIMIT,  "the picture is too large",      "use at most 16384 x 8192 pixels")   \
    X(IMG_ERROR_MEMORY,      "out of memory",                 "use smaller pictures")

typedef enum img_result {
#define IMG__ENUM(name, what, todo) name,
    IMG_RESULTS(IMG__ENUM)
#undef IMG__ENUM
    IMG_RESULT_COUNT
} img_result;

enum {
    IMG_ERROR_SIZE = 512,          /* room for any message; shorter buffers get its beginning     */
    IMG_MAX_SIDE   = 16384,        /* pixels                                                      */
    IMG_MAX_PIXELS = 1 << 27       /* w*h                                                         */
};

/* The result's meaning as a few words, "success" for IMG_OK. A constant: do not free. */
IMG_API const char *img_result_text(img_result result);

/* ---- Pictures -------------------------------------------------------------------------------- */

/* A picture that owns its pixels. {0} is the empty picture. */
typedef struct img_image {
    uint8_t *rgb;                  /* [h][w][3], 0..255                                           */
    size_t   w, h;                 /* pixels                                                      */
} img_image;

/* Releases the pixels and makes the picture empty. Empty pictures and NULL are fine. */
IMG_API void img_free(img_image *image);

/* Reads the PNG or JPEG file at path; its content tells which, not its name.
   out: receives the upright picture.
   Errors: FILE, FORMAT, UNSUPPORTED, CORRUPT, SIZE_LIMIT, MEMORY. */
IMG_API img_result img_load(const char *path, img_image *out, char *err, size_t errsize);

/* The same from size bytes at data, which stay the caller's. name: for messages, or NULL. */
IMG_API img_result img_load_memory(const void *data, size_t size, const char *name,
                                   img_image *out, char *err, size_t errsize);

/* Writes rgb [h][w][3] to path as a PNG file: to a temporary name beside it, synced to disk, then
   renamed, so that path holds either its old content or all of the new one. Errors: ARGUMENT, FILE,
   SIZE_LIMIT, MEMORY. */
IMG_API img_result img_save_png(const char *path, const uint8_t *rgb, size_t w, size_t h,
                                char *err, size_t errsize);

/* The same into memory. *png receives *size bytes: release them with img_free_png. */
IMG_API img_result img_encode_png(const uint8_t *rgb, size_t w, size_t h,
                                  uint8_t **png, size_t *size, char *err, size_t errsize);
IMG_API void img_free_png(uint8_t *png);

/* Cuts out the rectangle of w x h pixels whose top left pixel is column x, row y of
   rgb [in_h][in_w][3]. Errors: ARGUMENT when it reaches outside or is empty, SIZE_LIMIT, MEMORY. */
IMG_API img_result img_crop(const uint8_t *rgb, size_t in_w, size_t in_h, size_t x, size_t y,
                            size_t w, size_t h, img_image *out, char *err, size_t errsize);

/* Scales rgb [in_h][in_w][3] to w x h pixels with a triangle filter that widens when it shrinks, so
   that fine texture is averaged and not aliased; within 1 of Pillow's BILINEAR. Errors: ARGUMENT,
   SIZE_LIMIT, MEMORY. */
IMG_API img_result img_resize(const uint8_t *rgb, size_t in_w, size_t in_h, size_t w, size_t h,
                              img_image *out, char *err, size_t errsize);

/* ---- Pictures for reports ----------------------------------------------------------------------
   Text is UTF-8; printable ASCII has glyphs, anything else shows as a box. '\n' breaks a line.   */

typedef struct img_grid_config {
    const char *title;             /* above the grid, or NULL                                     */
    size_t      columns;           /* pictures side by side; 0: about as many as rows             */
    size_t      scale;             /* every pixel becomes scale x scale pixels, >= 1              */
    size_t      text_scale;        /* 1: letters 7 pixels high; 2: 14; ...; 0: fits the pictures  */
} img_grid_config;

/* No title, columns 0, scale 1, text_scale 0. */
IMG_API img_grid_config img_grid_config_default(void);

/* Arranges n pictures of equal size w x h on white paper, row by row, each above its caption.
   pictures: [n] pointers to [h][w][3]; a NULL leaves its place empty.
   captions: [n] strings, wrapped to the picture's width (to at least 16 letters), or NULL for none;
             single captions may be NULL too.
   Errors: ARGUMENT, SIZE_LIMIT, MEMORY. */
IMG_API img_result img_grid(const uint8_t *const *pictures, const char *const *captions, size_t n,
                            size_t w, size_t h, const img_grid_config *config,
                            img_image *out, char *err, size_t errsize);

typedef struct img_curve {
    const char  *label;            /* for the legend; NULL: not in it                             */
    const float *x;                /* [n] positions, ascending; NULL: 0, 1, 2, ...                */
    const float *y;                /* [n] values; NaN or infinite ones leave a gap                */
    size_t       n;
} img_curve;

typedef struct img_plot_config {
    const char *title;             /* or NULL                                                     */
    const char *x_label, *y_label; /* or NULL                                                     */
    size_t      w, h;              /* pixels of the whole picture, at least 240 x 160             */
    size_t      smooth;            /* > 1: a moving average over up to this many points is drawn  */
                                   /* boldly, above the raw curve, thin and pale                  */
    int         log_y;             /* non-zero: logarithmic y axis; values <= 0 leave a gap       */
} img_plot_config;

/* No labels, 800 x 480 pixels, no smoothing, linear. */
IMG_API img_plot_config img_plot_config_default(void);

/* Draws curves [count] over common axes, whose range is that of all finite values.
   Errors: ARGUMENT, SIZE_LIMIT, MEMORY. */
IMG_API img_result img_plot(const img_curve *curves, size_t count, const img_plot_config *config,
                            img_image *out, char *err, size_t errsize);

#ifdef __cplusplus
}
#endif
#endif /* IMAGES_H */

/* ==== Stop here if you only want the API ====================================================== */

#ifdef IMAGES_IMPLEMENTATION

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <io.h>
#include <process.h>
#else
#include <unistd.h>
#endif

#if !defined(IMG_MALLOC) && !defined(IMG_REALLOC) && !defined(IMG_FREE)
#define IMG_MALLOC(size)       malloc(size)
#define IMG_REALLOC(ptr, size) realloc(ptr, size)
#define IMG_FREE(ptr)          free(ptr)
#elif !defined(IMG_MALLOC) || !defined(IMG_REALLOC) || !defined(IMG_FREE)
#error "images.h: define all of IMG_MALLOC, IMG_REALLOC and IMG_FREE, or none"
#endif

/* ---- [IMG-01] Errors, memory, checked sizes ----------------------------------------------------
   Private functions that can fail return 1 or 0; the first failure is kept in the job.

   Easy to get wrong
   - On 32-bit machines w*h*3 overflows: all sizes go through img__alloc's checked product.       */

/* One public call: where its message goes and what has happened so far. */
typedef struct img__job {
    const char *name;              /* file or function that messages begin with                   */
    char       *err;
    size_t      errsize;
    img_result  result;
} img__job;

IMG_API const char *img_result_text(img_result result)
{
    switch (result) {
#define IMG__CASE(name, what, todo) case name: return what;
        IMG_RESULTS(IMG__CASE)
#undef IMG__CASE
        default: return "unknown result";
    }
}

static const char *img__advice(img_result result)
{
    switch (result) {
#define IMG__CASE(name, what, todo) case name: return todo;
        IMG_RESULTS(IMG__CASE)
#undef IMG__CASE
        default: return "";
    }
}

static img__job img__begin(const char *name, char *err, size_t errsize)
{
    img__job job;
    job.name = name;
    job.err = errsize ? err : NULL;
    job.errsize = errsize;
    job.result = IMG_OK;
    if (job.err)
        job.err[0] = 0;
    return job;
}

/* Notes the failure "NAME: detail; advice" unless there is one already. Returns 0, for return. */
static int img__fail(img__job *job, img_result result, const char *format, ...)
{
    char detail[IMG_ERROR_SIZE];
    va_list args;
    if (job->result != IMG_OK)
        return 0;                                    /* the first failure causes the others       */
    job->result = result;
    if (!job->err)
        return 0;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    snprintf(job->err, job->errsize, "%s: %s; %s", job->name, detail, img__advice(result));
    return 0;
}

/* Memory for count * size bytes, uninitialised. NULL after noting the failure. */
static void *img__alloc(img__job *job, size_t count, size_t size)
{
    void *memory = NULL;
    if (size == 0 || count <= SIZE_MAX / size)
        memory = IMG_MALLOC(count && size ? count * size : 1);
    if (!memory)
        img__fail(job, IMG_ERROR_MEMORY, "no memory for %lu x %lu bytes",
                  (unsigned long)count, (unsigned long)size);
    return memory;
}

static int img__check_size(img__job *job, size_t w, size_t h)
{
    if (w == 0 || h == 0)
        return img__fail(job, IMG_ERROR_ARGUMENT, "a side of %lu x %lu pixels is zero",
                         (unsigned long)w, (unsigned long)h);
    if (w > IMG_MAX_SIDE || h > IMG_MAX_SIDE || w > IMG_MAX_PIXELS / h)
        return img__fail(job, IMG_ERROR_SIZE_LIMIT, "%lu x %lu pixels are too many",
                         (unsigned long)w, (unsigned long)h);
    return 1;
}

/* Checks the size and gives the picture uninitialised pixels; it stays empty on failure. */
static int img__new(img__job *job, size_t w, size_t h, img_image *image)
{
    memset(image, 0, sizeof *image);
    if (!img__check_size(job, w, h))
        return 0;
    image->rgb = (uint8_t *)img__alloc(job, w * h, 3);
    if (!image->rgb)
        return 0;
    image->w = w;
    image->h = h;
    return 1;
}

IMG_API void img_free(img_image *image)
{
    if (!image)
        return;
    IMG_FREE(image->rgb);
    memset(image, 0, sizeof *image);
}

static uint32_t img__u16be(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static uint32_t img__u32be(const uint8_t *p) { return img__u16be(p) << 16 | img__u16be(p + 2); }

/* ---- [IMG-02] Deflate: compression -------------------------------------------------------------
   RFC 1951. Text is replaced by references to earlier text (length 3..258, distance 1..32768),
   found through chains of positions with equal hash. Literals and references are then written in
   blocks, each with the Huffman codes that suit it: its own ("dynamic"), or the standard's where
   describing its own would cost more than it saves ("fixed").

   Easy to get wrong
   - Bits fill bytes from the lowest up; Huffman codes alone are written highest bit first.
   - A block without references still describes one distance code.                                */

enum {
    IMG__WINDOW      = 32768,      /* farthest reference, in bytes                                */
    IMG__MIN_MATCH   = 5,          /* shortest; less than this costs more than it saves           */
    IMG__MAX_MATCH   = 258,        /* longest reference, in bytes                                 */
    IMG__LITLEN      = 288,        /* literals 0..255, block end 256, lengths 257..285, 2 unused  */
    IMG__DIST        = 30,
    IMG__MAX_BITS    = 15,         /* longest Huffman code                                        */
    IMG__HASH_BITS   = 15,
    IMG__CHAIN       = 128,        /* candidates tried per position                               */
    IMG__GOOD_MATCH  = 64,         /* long enough to stop looking for a better one                */
    IMG__BLOCK       = 32768       /* tokens per block                                            */
};

/* Length symbol 257+i covers lengths base .. base + 2^extra - 1; distance symbols likewise. */
static const uint16_t img__len_base[29] = {
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115,
    131, 163, 195, 227, 258 };
static const uint8_t img__len_extra[29] = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0 };
static const uint16_t img__dist_base[30] = {
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577 };
static const uint8_t img__dist_extra[30] = {
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12,
    13, 13 };
/* The order in which a dynamic block lists the lengths of its code length codes. */
static const uint8_t img__code_order[19] = {
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15 };

/* Growing output. After a failed allocation writing goes on without effect; the job knows. */
typedef struct img__writer {
    img__job *job;
    uint8_t  *data;
    size_t    size, capacity;
    uint32_t  bits;                /* not yet written, lowest first                               */
    int       bit_count;           /* < 8 between calls                                           */
} img__writer;

static void img__put_byte(img__writer *w, unsigned byte)
{
    if (w->job->result != IMG_OK)
        return;
    if (w->size == w->capacity) {
        size_t capacity = w->capacity < 4096 ? 4096 : w->capacity + w->capacity / 2;
        uint8_t *data = capacity > w->capacity ? (uint8_t *)IMG_REALLOC(w->data, capacity) : NULL;
        if (!data) {
            img__fail(w->job, IMG_ERROR_MEMORY, "no memory for %lu bytes of PNG",
                      (unsigned long)capacity);
            return;
        }
        w->data = data;
        w->capacity = capacity;
    }
    w->data[w->size++] = (uint8_t)byte;
}

static void img__put_u32be(img__writer *w, uint32_t v)
{
    int shift;
    for (shift = 24; shift >= 0; shift -= 8)
        img__put_byte(w, v >> shift & 255);
}

/* Appends count <= 16 bits, lowest first. */
static void img__put_bits(img__writer *w, uint32_t bits, int count)
{
    w->bits |= bits << w->bit_count;
    w->bit_count += count;
    while (w->bit_count >= 8) {
        img__put_byte(w, w->bits & 255);
        w->bits >>= 8;
        w->bit_count -= 8;
    }
}

static void img__flush_bits(img__writer *w)
{
    if (w->bit_count > 0)
        img__put_byte(w, w->bits & 255);
    w->bits = 0;
    w->bit_count = 0;
}

/* A Huffman code for writing: length 0 marks an unused symbol; codes are stored bit-reversed. */
typedef struct img__code {
    uint8_t  length[IMG__LITLEN];
    uint16_t code[IMG__LITLEN];
} img__code;

/* Chooses code lengths <= limit for n symbols with these frequencies, 0 for those without. */
static void img__huffman_lengths(const uint32_t *frequency, int n, int limit, uint8_t *length)
{
    uint32_t flat[IMG__LITLEN], weight[2 * IMG__LITLEN];
    int parent[2 * IMG__LITLEN], alive[IMG__LITLEN];
    int i, longest;
    memcpy(flat, frequency, (size_t)n * sizeof *flat);
    do {
        int used = 0, nodes = n;
        for (i = 0; i < n; i++) {
            length[i] = 0;
            weight[i] = flat[i];
            parent[i] = -1;
            if (flat[i])
                alive[used++] = i;
        }
        if (used == 1)
            length[alive[0]] = 1;                    /* a code of zero bits could not be written  */
        /* Huffman: join the two lightest nodes until one is left. */
        for (; used > 1; nodes++) {
            int pick;
            weight[nodes] = 0;
            parent[nodes] = -1;
            for (pick = 0; pick < 2; pick++) {
                int light = 0;
                for (i = 1; i < used; i++)
                    if (weight[alive[i]] < weight[alive[light]])
                        light = i;
                weight[nodes] += weight[alive[light]];
                parent[alive[light]] = nodes;
                alive[light] = alive[--used];
            }
            alive[used++] = nodes;
        }
        /* A symbol's depth in the tree is its length. */
        for (longest = 0, i = 0; i < n; i++) {
            int node;
            for (node = i; parent[node] >= 0; node = parent[node])
                length[i]++;
            if (length[i] > longest)
                longest = length[i];
        }
        /* Too deep a tree comes from very uneven frequencies: level them and try again. */
        for (i = 0; i < n; i++)
            flat[i] = (flat[i] + 1) / 2;
    } while (longest > limit);
}

/* Numbers the codes as the standard prescribes: by length, then by symbol. */
static void img__assign_codes(img__code *c, int n)
{
    unsigned next = 0;
    int length, i, bit;
    memset(c->code, 0, sizeof c->code);
    for (length = 1; length <= IMG__MAX_BITS; length++, next <<= 1)
        for (i = 0; i < n; i++)
            if (c->length[i] == length) {
                for (bit = 0; bit < length; bit++)   /* reversed: the lowest is written first     */
                    c->code[i] |= (uint16_t)((next >> bit & 1) << (length - 1 - bit));
                next++;
            }
}

/* The standard's own code lengths, for blocks of type 1. */
static void img__fixed_lengths(uint8_t litlen[IMG__LITLEN], uint8_t dist[32])
{
    int i;
    for (i = 0; i < IMG__LITLEN; i++)
        litlen[i] = (uint8_t)(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    memset(dist, 5, 32);
}

static int img__find_symbol(const uint16_t *base, int n, unsigned value)
{
    while (base[n - 1] > value)
        n--;
    return n - 1;
}

static size_t img__code_cost(const uint32_t *frequency, const uint8_t *length, int n)
{
    size_t bits = 0;
    int i;
    for (i = 0; i < n; i++)
        bits += (size_t)frequency[i] * length[i];
    return bits;
}

/* Run-length codes the lengths of a dynamic block's two codes: 16 repeats the last length 3..6
   times, 17 and 18 write 3..10 and 11..138 zeros. Returns the count of pairs {symbol, extra}. */
static int img__pack_lengths(const uint8_t *length, int n, uint8_t (*packed)[2])
{
    int i = 0, count = 0;
    while (i < n) {
        int run = 1, take, symbol, extra;
        while (i + run < n && length[i + run] == length[i])
            run++;
        if (length[i] == 0 && run >= 3) {
            take = run > 138 ? 138 : run;
            symbol = take > 10 ? 18 : 17;
            extra = take - (take > 10 ? 11 : 3);
        } else if (i > 0 && length[i] == length[i - 1] && run >= 3) {
            take = run > 6 ? 6 : run;
            symbol = 16;
            extra = take - 3;
        } else {
            take = 1;
            symbol = length[i];
            extra = 0;
        }
        packed[count][0] = (uint8_t)symbol;
        packed[count++][1] = (uint8_t)extra;
        i += take;
    }
    return count;
}

/* Writes one block. token: literal byte, or length << 16 | distance. */
static void img__write_block(img__writer *w, const uint32_t *token, size_t count, int last)
{
    static const uint8_t packed_extra[19] = { 0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0, 2, 3, 7 };
    uint32_t lit_freq[IMG__LITLEN] = {0}, dist_freq[IMG__DIST] = {0}, pack_freq[19] = {0};
    uint8_t all[IMG__LITLEN + IMG__DIST], packed[IMG__LITLEN + IMG__DIST][2];
    uint8_t fixed_lit[IMG__LITLEN], fixed_dist[32];
    img__code lit, dist, pack;
    size_t i, own_cost, fixed_cost;
    int k, lit_count = 286, dist_count = IMG__DIST, pack_count = 19, packs;

    /* Count what occurs: the bits after a symbol cost the same with any code. */
    lit_freq[256] = 1;
    for (i = 0; i < count; i++)
        if (token[i] < 256) {
            lit_freq[token[i]]++;
        } else {
            lit_freq[257 + img__find_symbol(img__len_base, 29, token[i] >> 16)]++;
            dist_freq[img__find_symbol(img__dist_base, 30, token[i] & 65535)]++;
        }

    /* The block's own codes, and the code for writing their lengths. */
    img__huffman_lengths(lit_freq, IMG__LITLEN, IMG__MAX_BITS, lit.length);
    img__huffman_lengths(dist_freq, IMG__DIST, IMG__MAX_BITS, dist.length);
    while (lit_count > 257 && !lit.length[lit_count - 1])
        lit_count--;
    while (dist_count > 1 && !dist.length[dist_count - 1])
        dist_count--;
    memcpy(all, lit.length, (size_t)lit_count);
    memcpy(all + lit_count, dist.length, (size_t)dist_count);
    packs = img__pack_lengths(all, lit_count + dist_count, packed);
    for (k = 0; k < packs; k++)
        pack_freq[packed[k][0]]++;
    img__huffman_lengths(pack_freq, 19, 7, pack.length);
    while (pack_count > 4 && !pack.length[img__code_order[pack_count - 1]])
        pack_count--;

    /* Take the cheaper pair of codes. */
    img__fixed_lengths(fixed_lit, fixed_dist);
    own_cost = img__code_cost(lit_freq, lit.length, IMG__LITLEN)
             + img__code_cost(dist_freq, dist.length, IMG__DIST)
             + img__code_cost(pack_freq, pack.length, 19) + 14 + 3 * (size_t)pack_count;
    for (k = 0; k < 19; k++)
        own_cost += (size_t)pack_freq[k] * packed_extra[k];
    fixed_cost = img__code_cost(lit_freq, fixed_lit, IMG__LITLEN)
               + img__code_cost(dist_freq, fixed_dist, IMG__DIST);
    img__put_bits(w, (uint32_t)last, 1);
    if (fixed_cost <= own_cost) {
        img__put_bits(w, 1, 2);
        memcpy(lit.length, fixed_lit, sizeof fixed_lit);
        memcpy(dist.length, fixed_dist, IMG__DIST);
    } else {
        img__put_bits(w, 2, 2);
        img__put_bits(w, (uint32_t)(lit_count - 257), 5);
        img__put_bits(w, (uint32_t)(dist_count - 1), 5);
        img__put_bits(w, (uint32_t)(pack_count - 4), 4);
        for (k = 0; k < pack_count; k++)
            img__put_bits(w, pack.length[img__code_order[k]], 3);
        img__assign_codes(&pack, 19);
        for (k = 0; k < packs; k++) {
            img__put_bits(w, pack.code[packed[k][0]], pack.length[packed[k][0]]);
            img__put_bits(w, packed[k][1], packed_extra[packed[k][0]]);
        }
    }

    /* The tokens themselves, then the end of the block. */
    img__assign_codes(&lit, IMG__LITLEN);
    img__assign_codes(&dist, IMG__DIST);
    for (i = 0; i < count; i++)
        if (token[i] < 256) {
            img__put_bits(w, lit.code[token[i]], lit.length[token[i]]);
        } else {
            unsigned length = token[i] >> 16, distance = token[i] & 65535;
            int l = img__find_symbol(img__len_base, 29, length);
            int d = img__find_symbol(img__dist_base, 30, distance);
            img__put_bits(w, lit.code[257 + l], lit.length[257 + l]);
            img__put_bits(w, length - img__len_base[l], img__len_extra[l]);
            img__put_bits(w, dist.code[d], dist.length[d]);
            img__put_bits(w, distance - img__dist_base[d], img__dist_extra[d]);
        }
    img__put_bits(w, lit.code[256], lit.length[256]);
}

/* Positions by hash of the three bytes there, newest first, stored plus 1: 0 is none. */
typedef struct img__chains {
    uint32_t head[1 << IMG__HASH_BITS];
    uint32_t previous[IMG__WINDOW];  /* indexed by position modulo the window                     */
} img__chains;

static uint32_t img__hash3(const uint8_t *p)
{
    uint32_t bytes = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    return bytes * 0x9E3779B1u >> (32 - IMG__HASH_BITS);
}

/* The longest earlier copy of the text at position at, as length << 16 | distance, or 0. */
static uint32_t img__find_match(const img__chains *chains, const uint8_t *text, size_t n, size_t at)
{
    size_t longest = n - at, best = IMG__MIN_MATCH - 1, distance = 0;
    uint32_t entry;
    int tries = IMG__CHAIN;
    if (longest < IMG__MIN_MATCH)
        return 0;
    if (longest > IMG__MAX_MATCH)
        longest = IMG__MAX_MATCH;
    entry = chains->head[img__hash3(text + at)];
    while (entry && at - (entry - 1) <= IMG__WINDOW && tries-- > 0) {
        const uint8_t *old = text + (entry - 1), *here = text + at;
        size_t length = 0;
        uint32_t next = chains->previous[(entry - 1) % IMG__WINDOW];
        if (old[best] == here[best])                 /* else it cannot be longer than the best    */
            while (length < longest && old[length] == here[length])
                length++;
        if (length > best) {
            best = length;
            distance = at - (entry - 1);
            if (best == longest)
                break;
        }
        if (next >= entry)
            break;                                   /* a newer position has taken this slot      */
        entry = next;
    }
    if (distance == 0)
        return 0;
    return (uint32_t)(best << 16 | distance);
}

/* Makes the text at a position known to later searches. */
static void img__insert(img__chains *chains, const uint8_t *text, size_t n, size_t at)
{
    uint32_t *head;
    if (n - at < 3)
        return;
    head = &chains->head[img__hash3(text + at)];
    chains->previous[at % IMG__WINDOW] = *head;
    *head = (uint32_t)at + 1;
}

/* Appends n bytes of text as a deflate stream. */
static void img__deflate(img__writer *w, const uint8_t *text, size_t n)
{
    img__chains *chains = (img__chains *)img__alloc(w->job, 1, sizeof *chains);
    uint32_t *token = (uint32_t *)img__alloc(w->job, IMG__BLOCK, sizeof *token);
    uint32_t match, later = 0;
    size_t at = 0, count = 0;
    int have_later = 0;
    if (chains && token) {
        memset(chains, 0, sizeof *chains);
        while (at < n) {
            size_t step = 1;
            match = have_later ? later : img__find_match(chains, text, n, at);
            img__insert(chains, text, n, at);
            have_later = 0;
            /* A longer match may begin one byte later: then this byte is better a literal. */
            if (match && (match >> 16) < IMG__GOOD_MATCH) {
                later = img__find_match(chains, text, n, at + 1);
                if ((later >> 16) > (match >> 16)) {
                    match = 0;
                    have_later = 1;
                }
            }
            if (match)
                step = match >> 16;
            token[count++] = match ? match : text[at];
            for (at++; --step > 0; at++)
                img__insert(chains, text, n, at);
            if (count == IMG__BLOCK && at < n) {
                img__write_block(w, token, count, 0);
                count = 0;
            }
        }
        img__write_block(w, token, count, 1);
        img__flush_bits(w);
    }
    IMG_FREE(chains);
    IMG_FREE(token);
}

/* The checksum of zlib streams, RFC 1950. */
static uint32_t img__adler32(const uint8_t *p, size_t n)
{
    uint32_t a = 1, b = 0;
    while (n > 0) {
        size_t chunk = n < 5552 ? n : 5552;          /* so many keep the sums below 2^32          */
        n -= chunk;
        while (chunk-- > 0) {
            a += *p++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

/* ---- [IMG-03] PNG: writing ---------------------------------------------------------------------
   PNG specification (third edition). Each row is predicted from its neighbours by one of five
   filters before compression: the one that leaves the smallest sum of absolute differences.

   Easy to get wrong
   - Prediction uses bytes one *pixel* to the left, not one byte; outside the picture bytes are 0.
   - A chunk's checksum covers its type and data, not its length.                                 */

static const uint8_t img__png_signature[8] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n' };

/* The checksum of PNG chunks: CRC-32, four bits at a time. */
static uint32_t img__crc32(const uint8_t *p, size_t n)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
        0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C };
    uint32_t crc = 0xFFFFFFFFu;
    while (n-- > 0) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* The filters' predictions from the bytes left (a), above (b) and above left (c). */
static int img__predict(int filter, int a, int b, int c)
{
    int pa, pb, pc;
    switch (filter) {
        case 1:  return a;
        case 2:  return b;
        case 3:  return (a + b) / 2;
        case 4:                                      /* Paeth: the one nearest to a + b - c       */
            pa = abs(b - c);
            pb = abs(a - c);
            pc = abs(a + b - 2 * c);
            return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
        default: return 0;
    }
}

/* Filters all rows: out is [h][1 + 3w], a filter number before each row. */
static void img__filter_rows(const uint8_t *rgb, size_t w, size_t h, uint8_t *out)
{
    size_t row = w * 3, x, y;
    for (y = 0; y < h; y++) {
        const uint8_t *in = rgb + y * row, *above = y ? in - row : NULL;
        size_t cost, best_cost = SIZE_MAX;
        int filter, best = 0;
        for (filter = 0; filter <= 5; filter++) {
            int use = filter < 5 ? filter : best;    /* the sixth round writes the winner         */
            for (cost = 0, x = 0; x < row; x++) {
                int a = x >= 3 ? in[x - 3] : 0, b = above ? above[x] : 0;
                int c = x >= 3 && above ? above[x - 3] : 0;
                int difference = (in[x] - img__predict(use, a, b, c)) & 255;
                cost += (size_t)(difference < 128 ? difference : 256 - difference);
                if (filter == 5)
                    out[1 + x] = (uint8_t)difference;
            }
            if (cost < best_cost) {
                best_cost = cost;
                best = filter;
            }
        }
        out[0] = (uint8_t)best;
        out += 1 + row;
    }
}

/* Begins a chunk; returns where, for img__end_chunk. */
static size_t img__begin_chunk(img__writer *w, const char *type)
{
    size_t start = w->size;
    int i;
    img__put_u32be(w, 0);                            /* the length is known later                 */
    for (i = 0; i < 4; i++)
        img__put_byte(w, (uint8_t)type[i]);
    return start;
}

static void img__end_chunk(img__writer *w, size_t start)
{
    size_t length, i;
    if (w->job->result != IMG_OK)
        return;
    length = w->size - start - 8;
    for (i = 0; i < 4; i++)
        w->data[start + i] = (uint8_t)(length >> (24 - 8 * i));
    img__put_u32be(w, img__crc32(w->data + start + 4, length + 4));
}

static int img__png_encode(img__job *job, const uint8_t *rgb, size_t w, size_t h, img__writer *out)
{
    uint8_t *rows;
    size_t start, size;
    int i;
    memset(out, 0, sizeof *out);
    out->job = job;
    if (!rgb)
        return img__fail(job, IMG_ERROR_ARGUMENT, "no pixels were given");
    if (!img__check_size(job, w, h))
        return 0;
    rows = (uint8_t *)img__alloc(job, h, 1 + 3 * w);
    if (!rows)
        return 0;
    size = h * (1 + 3 * w);
    img__filter_rows(rgb, w, h, rows);

    for (i = 0; i < 8; i++)
        img__put_byte(out, img__png_signature[i]);
    start = img__begin_chunk(out, "IHDR");
    img__put_u32be(out, (uint32_t)w);
    img__put_u32be(out, (uint32_t)h);
    img__put_byte(out, 8);                           /* bits per channel                          */
    img__put_byte(out, 2);                           /* RGB                                       */
    img__put_byte(out, 0);                           /* the one compression method                */
    img__put_byte(out, 0);                           /* the one filter method                     */
    img__put_byte(out, 0);                           /* not interlaced                            */
    img__end_chunk(out, start);
    start = img__begin_chunk(out, "IDAT");
    img__put_byte(out, 0x78);                        /* zlib header: deflate, 32 KB window        */
    img__put_byte(out, 0xDA);
    img__deflate(out, rows, size);
    img__put_u32be(out, img__adler32(rows, size));
    img__end_chunk(out, start);
    start = img__begin_chunk(out, "IEND");
    img__end_chunk(out, start);
    IMG_FREE(rows);
    return job->result == IMG_OK;
}

IMG_API img_result img_encode_png(const uint8_t *rgb, size_t w, size_t h,
                                  uint8_t **png, size_t *size, char *err, size_t errsize)
{
    img__job job = img__begin("img_encode_png", err, errsize);
    img__writer out;
    *png = NULL;
    *size = 0;
    if (img__png_encode(&job, rgb, w, h, &out)) {
        *png = out.data;
        *size = out.size;
    } else {
        IMG_FREE(out.data);
    }
    return job.result;
}

IMG_API void img_free_png(uint8_t *png)
{
    IMG_FREE(png);
}

/* Writes size bytes to a new file at path and has them on the disk before it returns. */
static int img__write_synced(const char *path, const uint8_t *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    int good;
    if (!file)
        return 0;
    good = fwrite(data, 1, size, file) == size && fflush(file) == 0;
#ifdef _WIN32
    good = good && _commit(_fileno(file)) == 0;
#else
    good = good && (fsync(fileno(file)) == 0 || errno == EINVAL || errno == ENOTSUP);
#endif
    return fclose(file) == 0 && good;                /* closing fails too when the disk is full   */
}

/* The process number in the name keeps two programs that write the same path apart. */
static int img__write_atomically(img__job *job, const char *path, const uint8_t *data, size_t size)
{
    size_t room = strlen(path) + 32;
    char *temporary = (char *)img__alloc(job, room, 1);
    if (!temporary)
        return 0;
#ifdef _WIN32
    snprintf(temporary, room, "%s.%ld.tmp", path, (long)_getpid());
#else
    snprintf(temporary, room, "%s.%ld.tmp", path, (long)getpid());
#endif
    if (!img__write_synced(temporary, data, size)) {
        img__fail(job, IMG_ERROR_FILE, "cannot write (%s)", strerror(errno));
        remove(temporary);
    } else {
#ifdef _WIN32
        remove(path);                                /* there, rename does not replace            */
#endif
        if (rename(temporary, path) != 0) {
            img__fail(job, IMG_ERROR_FILE, "cannot rename the finished file (%s)", strerror(errno));
            remove(temporary);
        }
    }
    IMG_FREE(temporary);
    return job->result == IMG_OK;
}

IMG_API img_result img_save_png(const char *path, const uint8_t *rgb, size_t w, size_t h,
                                char *err, size_t errsize)
{
    img__job job = img__begin(path ? path : "img_save_png", err, errsize);
    img__writer out;
    memset(&out, 0, sizeof out);
    if (!path)
        img__fail(&job, IMG_ERROR_ARGUMENT, "no path was given");
    else if (img__png_encode(&job, rgb, w, h, &out))
        img__write_atomically(&job, path, out.data, out.size);
    IMG_FREE(out.data);
    return job.result;
}

/* ---- [IMG-04] Inflate: decompression -----------------------------------------------------------
   RFC 1951 inside RFC 1950 (zlib). A Huffman code becomes a table with one entry for every value of
   the next bits, as many bits as its longest code has: decoding a symbol is one look-up.

   Easy to get wrong
   - Lengths may promise more codes than there are bit patterns (refused), or fewer: allowed only
     for a code with a single one-bit symbol, whose other pattern must then not occur.
   - A reference may overlap what it produces: copy byte by byte.                                 */

typedef struct img__table {
    uint16_t entry[1 << IMG__MAX_BITS];  /* symbol << 4 | length, by the next bits; 0: no code    */
    uint32_t mask;                       /* of the bits that index it                             */
} img__table;

typedef struct img__inflater {
    img__job      *job;
    const uint8_t *in;
    size_t         in_size, in_at;
    uint32_t       bits;           /* read but not used, lowest first                             */
    int            bit_count;
    uint8_t       *out;
    size_t         out_size, out_at;
    img__table     litlen, dist;
} img__inflater;

/* Tops the bits up to 16 or more, unless the input ends. */
static void img__fill_bits(img__inflater *z)
{
    while (z->bit_count <= 16 && z->in_at < z->in_size) {
        z->bits |= (uint32_t)z->in[z->in_at++] << z->bit_count;
        z->bit_count += 8;
    }
}

static void img__drop_bits(img__inflater *z, int count)
{
    if (count > z->bit_count) {
        img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels end too early");
        count = z->bit_count;
    }
    z->bits >>= count;
    z->bit_count -= count;
}

/* The next count <= 16 bits. After a failure: 0. */
static unsigned img__take_bits(img__inflater *z, int count)
{
    unsigned value;
    img__fill_bits(z);
    value = z->bits & ((1u << count) - 1);
    img__drop_bits(z, count);
    return z->job->result == IMG_OK ? value : 0;
}

/* The next symbol of a code. After a failure: 0. */
static unsigned img__take_symbol(img__inflater *z, const img__table *table)
{
    unsigned entry;
    img__fill_bits(z);
    entry = table->entry[z->bits & table->mask];
    if (entry == 0)
        img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold an impossible code");
    img__drop_bits(z, entry & 15);
    return z->job->result == IMG_OK ? entry >> 4 : 0;
}

/* Builds the table for code lengths length[n]. */
static int img__build_table(img__inflater *z, img__table *table, const uint8_t *length, int n)
{
    img__code code;
    unsigned used = 0, step, i;
    int k, longest = 0;
    memset(code.length, 0, sizeof code.length);
    memcpy(code.length, length, (size_t)n);
    for (k = 0; k < n; k++) {
        if (length[k])
            used += 1u << (IMG__MAX_BITS - length[k]);
        if (length[k] > longest)
            longest = length[k];
    }
    /* used counts bit patterns of 15 bits. */
    if (used > 1u << IMG__MAX_BITS || (used < 1u << IMG__MAX_BITS && longest > 1))
        return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold a wrong code");
    img__assign_codes(&code, n);
    table->mask = (1u << longest) - 1;
    memset(table->entry, 0, ((size_t)table->mask + 1) * sizeof *table->entry);
    /* A code of fewer bits than the index stands wherever the low bits are its own. */
    for (k = 0; k < n; k++)
        if (length[k])
            for (step = 1u << length[k], i = code.code[k]; i <= table->mask; i += step)
                table->entry[i] = (uint16_t)(k << 4 | length[k]);
    return 1;
}

/* Reads a dynamic block's two codes. */
static int img__read_codes(img__inflater *z)
{
    uint8_t length[320] = {0}, pack[19] = {0};
    int lit_count = (int)img__take_bits(z, 5) + 257;
    int dist_count = (int)img__take_bits(z, 5) + 1;
    int pack_count = (int)img__take_bits(z, 4) + 4;
    int i, at = 0;
    for (i = 0; i < pack_count; i++)
        pack[img__code_order[i]] = (uint8_t)img__take_bits(z, 3);
    if (z->job->result != IMG_OK || !img__build_table(z, &z->litlen, pack, 19))
        return 0;
    while (at < lit_count + dist_count) {
        unsigned symbol = img__take_symbol(z, &z->litlen);
        int repeat = 1;
        uint8_t value = (uint8_t)symbol;
        if (symbol == 16) {                          /* repeats the last length                   */
            repeat = 3 + (int)img__take_bits(z, 2);
            value = at ? length[at - 1] : 255;
        } else if (symbol >= 17) {
            repeat = symbol == 17 ? 3 + (int)img__take_bits(z, 3) : 11 + (int)img__take_bits(z, 7);
            value = 0;
        }
        if (z->job->result != IMG_OK || value == 255 || at + repeat > lit_count + dist_count)
            return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold wrong lengths");
        memset(length + at, value, (size_t)repeat);
        at += repeat;
    }
    if (lit_count > 286 || dist_count > IMG__DIST || length[256] == 0)
        return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold wrong lengths");
    return img__build_table(z, &z->litlen, length, lit_count)
        && img__build_table(z, &z->dist, length + lit_count, dist_count);
}

/* Room for count more bytes of output? */
static int img__has_room(img__inflater *z, size_t count)
{
    if (z->out_size - z->out_at >= count)
        return 1;
    return img__fail(z->job, IMG_ERROR_CORRUPT, "more pixels are stored than the header announces");
}

/* The symbols of a fixed or dynamic block. */
static int img__read_symbols(img__inflater *z)
{
    for (;;) {
        unsigned symbol = img__take_symbol(z, &z->litlen);
        size_t length, distance;
        if (z->job->result != IMG_OK)
            return 0;
        if (symbol == 256)
            return 1;
        if (symbol < 256) {
            if (!img__has_room(z, 1))
                return 0;
            z->out[z->out_at++] = (uint8_t)symbol;
            continue;
        }
        symbol -= 257;
        if (symbol >= 29)
            return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold wrong lengths");
        length = img__len_base[symbol] + img__take_bits(z, img__len_extra[symbol]);
        symbol = img__take_symbol(z, &z->dist);
        if (symbol >= IMG__DIST)
            return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels refer nowhere");
        distance = img__dist_base[symbol] + img__take_bits(z, img__dist_extra[symbol]);
        if (z->job->result != IMG_OK || !img__has_room(z, length))
            return 0;
        if (distance > z->out_at)
            return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels refer nowhere");
        for (; length > 0; length--, z->out_at++)
            z->out[z->out_at] = z->out[z->out_at - distance];
    }
}

/* A block that was not compressed: its length, the length's complement, and the bytes. */
static int img__read_stored(img__inflater *z)
{
    unsigned length, check;
    img__drop_bits(z, z->bit_count & 7);             /* to the next whole byte                    */
    length = img__take_bits(z, 16);
    check = img__take_bits(z, 16);
    if (z->job->result != IMG_OK || (length ^ check) != 0xFFFF)
        return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold a wrong length");
    if (!img__has_room(z, length))
        return 0;
    for (; length > 0 && z->job->result == IMG_OK; length--)
        z->out[z->out_at++] = (uint8_t)img__take_bits(z, 8);
    return z->job->result == IMG_OK;
}

static int img__read_blocks(img__inflater *z)
{
    uint8_t litlen[IMG__LITLEN], dist[32];
    unsigned last, type, header = img__take_bits(z, 16), sum, i;
    int fixed = 0;
    header = (header & 255) << 8 | header >> 8;
    if ((header & 0x0F00) != 0x0800 || header >> 12 > 7 || (header & 0x20) || header % 31)
        return img__fail(z->job, IMG_ERROR_CORRUPT, "the pixels are not a zlib stream");
    do {
        last = img__take_bits(z, 1);
        type = img__take_bits(z, 2);
        if (z->job->result != IMG_OK)
            return 0;
        if (type == 3)
            return img__fail(z->job, IMG_ERROR_CORRUPT, "the compressed pixels hold a wrong block");
        if (type == 0) {
            if (!img__read_stored(z))
                return 0;
            continue;
        }
        if (type == 1 && !fixed) {
            img__fixed_lengths(litlen, dist);
            img__build_table(z, &z->litlen, litlen, IMG__LITLEN);
            img__build_table(z, &z->dist, dist, 32);
        } else if (type == 2 && !img__read_codes(z)) {
            return 0;
        }
        fixed = type == 1;                           /* the tables are in place                   */
        if (!img__read_symbols(z))
            return 0;
    } while (!last);
    img__drop_bits(z, z->bit_count & 7);
    for (sum = 0, i = 0; i < 4; i++)
        sum = sum << 8 | img__take_bits(z, 8);
    if (z->job->result == IMG_OK && z->out_at != z->out_size)
        return img__fail(z->job, IMG_ERROR_CORRUPT, "fewer pixels are stored than announced");
    if (z->job->result == IMG_OK && sum != img__adler32(z->out, z->out_size))
        return img__fail(z->job, IMG_ERROR_CORRUPT, "the pixels' checksum is wrong");
    return z->job->result == IMG_OK;
}

/* Decompresses a zlib stream that must give exactly out_size bytes. */
static int img__inflate(img__job *job, const uint8_t *in, size_t in_size, uint8_t *out,
                        size_t out_size)
{
    img__inflater *z = (img__inflater *)img__alloc(job, 1, sizeof *z);
    int good;
    if (!z)
        return 0;
    z->job = job;
    z->in = in;
    z->in_size = in_size;
    z->in_at = 0;
    z->bits = 0;
    z->bit_count = 0;
    z->out = out;
    z->out_size = out_size;
    z->out_at = 0;
    good = img__read_blocks(z);
    IMG_FREE(z);
    return good;
}

/* ---- [IMG-05] PNG: reading ---------------------------------------------------------------------
   Chunks are gathered, the pixels inflated, each row's prediction undone, and every pixel turned
   into 8-bit RGB. An interlaced picture is seven smaller ones (Adam7), a plain one a single pass.

   Easy to get wrong
   - Passes without pixels have no rows, not even the filter bytes.
   - Samples below 8 bits fill bytes from the highest bit down; each row begins a new byte.
   - The transparent colour (tRNS) is compared before 16-bit samples are shortened.               */

typedef struct img__png {
    img__job *job;
    size_t    w, h;
    int       depth;               /* bits per sample: 1, 2, 4, 8, 16                             */
    int       color;               /* 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGB + alpha     */
    int       channels;            /* samples per pixel                                           */
    int       interlaced;
    uint8_t   palette[256][4];     /* red, green, blue, alpha                                     */
    unsigned  palette_size;
    int       has_key;             /* one colour is transparent: key, per channel                 */
    unsigned  key[3];
    int       orientation;         /* EXIF, 1..8                                                  */
    uint8_t  *packed;              /* all IDAT chunks' bytes                                      */
    size_t    packed_size;
} img__png;

/* Numbers in TIFF blocks, which begin with their byte order. */
static uint32_t img__tiff_u16(const uint8_t *p, int big)
{
    return big ? img__u16be(p) : (uint32_t)p[1] << 8 | p[0];
}

/* The EXIF orientation in a TIFF block, 1..8; 1 (upright) when absent or damaged. */
static int img__exif_orientation(const uint8_t *p, size_t size)
{
    size_t at, count;
    int big;
    if (size < 8 || (memcmp(p, "II*\0", 4) != 0 && memcmp(p, "MM\0*", 4) != 0))
        return 1;
    big = p[0] == 'M';
    at = big ? img__u32be(p + 4) : img__tiff_u16(p + 4, 0) | img__tiff_u16(p + 6, 0) << 16;
    if (at > size - 2)
        return 1;
    /* A directory of entries {tag, type, count, value}. */
    count = img__tiff_u16(p + at, big);
    for (at += 2; count > 0 && size - at >= 12; count--, at += 12)
        if (img__tiff_u16(p + at, big) == 0x0112 && img__tiff_u16(p + at + 2, big) == 3) {
            uint32_t value = img__tiff_u16(p + at + 8, big);
            return value >= 1 && value <= 8 ? (int)value : 1;
        }
    return 1;
}

/* The header: everything that decides sizes. */
static int img__png_header(img__png *png, const uint8_t *p, size_t size)
{
    static const int channels[7] = { 1, 0, 3, 1, 2, 0, 4 };
    static const int depths[7] = { 1|2|4|8|16, 0, 8|16, 1|2|4|8, 8|16, 0, 8|16 };
    if (size != 13 || p[9] > 6 || channels[p[9]] == 0 || p[8] > 16 || (p[8] & (p[8] - 1)) != 0
        || (p[8] & depths[p[9]]) == 0)
        return img__fail(png->job, IMG_ERROR_CORRUPT, "the PNG header is wrong");
    if (p[10] != 0 || p[11] != 0 || p[12] > 1)
        return img__fail(png->job, IMG_ERROR_UNSUPPORTED,
                         "unknown PNG methods: compression %d, filter %d, interlace %d",
                         p[10], p[11], p[12]);
    png->w = img__u32be(p);
    png->h = img__u32be(p + 4);
    png->depth = p[8];
    png->color = p[9];
    png->channels = channels[p[9]];
    png->interlaced = p[12];
    if (png->w == 0 || png->h == 0)
        return img__fail(png->job, IMG_ERROR_CORRUPT, "the PNG header announces no pixels");
    return img__check_size(png->job, png->w, png->h);
}

/* tRNS: alpha for the palette's first colours, or the one transparent colour. */
static int img__png_transparency(img__png *png, const uint8_t *p, size_t size)
{
    size_t i;
    if (png->color == 3) {
        if (size > png->palette_size)
            return img__fail(png->job, IMG_ERROR_CORRUPT, "tRNS does not fit the palette");
        for (i = 0; i < size; i++)
            png->palette[i][3] = p[i];
        return 1;
    }
    if (png->color > 3 || size != (png->color == 0 ? 2u : 6u))
        return img__fail(png->job, IMG_ERROR_CORRUPT, "tRNS does not fit the colour type");
    png->has_key = 1;
    for (i = 0; i < size / 2; i++)
        png->key[i] = img__u16be(p + 2 * i) & ((1u << png->depth) - 1);
    return 1;
}

/* One chunk after the header. */
static int img__png_chunk(img__png *png, const uint8_t *type, const uint8_t *p, size_t size)
{
    size_t i;
    if (memcmp(type, "PLTE", 4) == 0) {
        if (size == 0 || size > 768 || size % 3)
            return img__fail(png->job, IMG_ERROR_CORRUPT, "the palette has a wrong size");
        png->palette_size = (unsigned)(size / 3);
        for (i = 0; i < size / 3; i++) {
            memcpy(png->palette[i], p + 3 * i, 3);
            png->palette[i][3] = 255;
        }
    } else if (memcmp(type, "IDAT", 4) == 0) {
        memcpy(png->packed + png->packed_size, p, size);
        png->packed_size += size;
    } else if (memcmp(type, "tRNS", 4) == 0) {
        return img__png_transparency(png, p, size);
    } else if (memcmp(type, "eXIf", 4) == 0) {
        png->orientation = img__exif_orientation(p, size);
    } else if ((type[0] & 0x20) == 0) {              /* an upper case letter: cannot be skipped   */
        return img__fail(png->job, IMG_ERROR_UNSUPPORTED, "unknown PNG chunk %02x%02x%02x%02x",
                         type[0], type[1], type[2], type[3]);
    }
    return 1;
}

/* Reads all chunks up to IEND. */
static int img__png_chunks(img__png *png, const uint8_t *data, size_t size)
{
    size_t at = 8;
    int first = 1;
    png->packed = (uint8_t *)img__alloc(png->job, size, 1);
    if (!png->packed)
        return 0;
    for (;;) {
        const uint8_t *chunk = data + at, *p = chunk + 8;
        size_t length;
        if (size - at < 12 || (length = img__u32be(chunk)) > size - at - 12)
            return img__fail(png->job, IMG_ERROR_CORRUPT, "the PNG file is cut short");
        if (img__crc32(chunk + 4, length + 4) != img__u32be(p + length))
            return img__fail(png->job, IMG_ERROR_CORRUPT, "a PNG checksum is wrong");
        at += length + 12;
        if (first != (memcmp(chunk + 4, "IHDR", 4) == 0))
            return img__fail(png->job, IMG_ERROR_CORRUPT, "the PNG header is not first");
        if (memcmp(chunk + 4, "IEND", 4) == 0)
            return 1;
        if (first ? !img__png_header(png, p, length) : !img__png_chunk(png, chunk + 4, p, length))
            return 0;
        first = 0;
    }
}

/* Undoes the filters of rows [h][1 + row] in place; distance: bytes from pixel to pixel, >= 1. */
static int img__unfilter(img__job *job, uint8_t *rows, size_t row, size_t h, size_t distance)
{
    size_t x, y;
    for (y = 0; y < h; y++) {
        uint8_t *line = rows + y * (1 + row) + 1;
        const uint8_t *above = y ? line - (1 + row) : NULL;
        int filter = line[-1];
        if (filter > 4)
            return img__fail(job, IMG_ERROR_CORRUPT, "row %lu has unknown filter %d",
                             (unsigned long)y, filter);
        for (x = 0; filter != 0 && x < row; x++) {
            int a = x >= distance ? line[x - distance] : 0, b = above ? above[x] : 0;
            int c = x >= distance && above ? above[x - distance] : 0;
            line[x] = (uint8_t)(line[x] + img__predict(filter, a, b, c));
        }
    }
    return 1;
}

/* Sample number i of a row, as stored. */
static unsigned img__png_sample(const uint8_t *row, size_t i, int depth)
{
    size_t bit;
    if (depth == 16)
        return img__u16be(row + 2 * i);
    if (depth == 8)
        return row[i];
    bit = i * (size_t)depth;
    return row[bit / 8] >> (8 - depth - (int)(bit % 8)) & ((1u << depth) - 1);
}

/* a * b / 255 for a, b <= 255, rounded. */
static unsigned img__mul255(unsigned a, unsigned b)
{
    return (a * b + 127) / 255;
}

/* Pixel x of an unfiltered row as RGB on white paper. */
static int img__png_pixel(const img__png *png, const uint8_t *row, size_t x, uint8_t *rgb)
{
    size_t first = x * (size_t)png->channels;
    unsigned max = (1u << png->depth) - 1, raw[4] = {0}, color[3], alpha = 255;
    int c, colors = png->channels < 3 ? 1 : 3, is_key = png->has_key;
    for (c = 0; c < png->channels; c++)
        raw[c] = img__png_sample(row, first + (size_t)c, png->depth);
    if (png->color == 3) {
        if (raw[0] >= png->palette_size)
            return img__fail(png->job, IMG_ERROR_CORRUPT, "a pixel has colour %u, the palette %u",
                             raw[0], png->palette_size);
        for (c = 0; c < 3; c++)
            color[c] = png->palette[raw[0]][c];
        alpha = png->palette[raw[0]][3];
    } else {
        for (c = 0; c < 3; c++)
            color[c] = (raw[c < colors ? c : 0] * 255 + max / 2) / max;
        for (c = 0; c < colors; c++)
            is_key = is_key && raw[c] == png->key[c];
        if (png->channels > colors)
            alpha = (raw[colors] * 255 + max / 2) / max;
        else if (is_key)
            alpha = 0;
    }
    for (c = 0; c < 3; c++)
        rgb[c] = (uint8_t)(img__mul255(color[c], alpha) + 255 - alpha);
    return 1;
}

/* From the inflated rows of all passes to pixels. */
static int img__png_pixels(const img__png *png, img_image *out)
{
    /* First column and row, and steps, of Adam7's seven passes; the eighth is "all pixels". */
    static const uint8_t pass[8][4] = {
        { 0, 0, 8, 8 }, { 4, 0, 8, 8 }, { 0, 4, 4, 8 }, { 2, 0, 4, 4 },
        { 0, 2, 2, 4 }, { 1, 0, 2, 2 }, { 0, 1, 1, 2 }, { 0, 0, 1, 1 } };
    size_t bits = (size_t)png->channels * (size_t)png->depth, total = 0, x, y;
    size_t pass_w[8], pass_h[8], row[8];
    int i, first = png->interlaced ? 0 : 7, end = png->interlaced ? 7 : 8, good;
    uint8_t *rows, *at;
    for (i = first; i < end; i++) {
        pass_w[i] = (png->w + pass[i][2] - 1 - pass[i][0]) / pass[i][2];
        pass_h[i] = (png->h + pass[i][3] - 1 - pass[i][1]) / pass[i][3];
        row[i] = (pass_w[i] * bits + 7) / 8;
        if (pass_w[i] > 0)
            total += pass_h[i] * (1 + row[i]);
    }
    /* Deflate expands at most 1032 times: do not ask for memory that the file cannot fill. */
    if (total / 1032 > png->packed_size)
        return img__fail(png->job, IMG_ERROR_CORRUPT, "fewer pixels are stored than announced");
    if (!img__new(png->job, png->w, png->h, out))
        return 0;
    rows = (uint8_t *)img__alloc(png->job, total, 1);
    good = rows && img__inflate(png->job, png->packed, png->packed_size, rows, total);
    for (at = rows, i = first; good && i < end; i++) {
        if (pass_w[i] == 0)
            continue;
        good = img__unfilter(png->job, at, row[i], pass_h[i], bits < 8 ? 1 : bits / 8);
        for (y = 0; good && y < pass_h[i]; y++, at += 1 + row[i])
            for (x = 0; good && x < pass_w[i]; x++) {
                size_t to_x = pass[i][0] + x * pass[i][2], to_y = pass[i][1] + y * pass[i][3];
                good = img__png_pixel(png, at + 1, x, out->rgb + (to_y * out->w + to_x) * 3);
            }
    }
    IMG_FREE(rows);
    return good;
}

static int img__png_load(img__job *job, const uint8_t *data, size_t size, img_image *out,
                         int *orientation)
{
    img__png png;
    int good;
    memset(&png, 0, sizeof png);
    png.job = job;
    png.orientation = 1;
    good = img__png_chunks(&png, data, size);
    if (good && png.packed_size == 0)
        good = img__fail(job, IMG_ERROR_CORRUPT, "the PNG file has no pixels");
    if (good && png.color == 3 && png.palette_size == 0)
        good = img__fail(job, IMG_ERROR_CORRUPT, "the PNG file lacks its palette");
    good = good && img__png_pixels(&png, out);
    IMG_FREE(png.packed);
    *orientation = png.orientation;
    return good;
}

/* ---- [IMG-06] JPEG: reading --------------------------------------------------------------------
   ITU T.81. A JPEG holds up to four components (brightness and colour differences), each cut into
   blocks of 8 x 8 samples that are stored as quantised cosine coefficients. All scans are decoded
   into coefficients first, which serves progressive files, where many scans refine the same block,
   and plain ones alike; then each block is transformed back, small components are enlarged, and
   colours converted.

   T.81 leaves rounding and enlargement to the decoder. Here they equal libjpeg's defaults to the
   bit: its exact integer transform and its triangle filter ("fancy upsampling").

   Easy to get wrong
   - A scan of one component visits the blocks that cover it, a scan of several visits whole MCUs,
     also beyond the right and lower edge: the coefficient array is as large as the latter.
   - In data, 0xFF is followed by a zero byte; 0xFF and anything else is a marker, where bits end.
   - Enlargement stops at the component's last real sample, not at its last stored one.           */

enum {
    IMG__FAST_BITS = 9,            /* codes up to this long are looked up at once                 */
    IMG__MAX_SCANS = 256           /* real files have about 10; bounds the time bad ones can take */
};

/* A Huffman code of bytes. */
typedef struct img__jpeg_code {
    int      defined;
    uint16_t fast[1 << IMG__FAST_BITS];  /* length << 8 | value by the next bits; 0: longer       */
    int      max_code[17];               /* greatest code of each length, -1: none                */
    int      offset[17];                 /* code + offset is its index in values                  */
    uint8_t  values[256];
} img__jpeg_code;

typedef struct img__component {
    int       id, h, v;            /* name; samples per MCU are h x v blocks                      */
    int       quant_index;
    int       dc, ac;              /* the Huffman codes of the current scan                       */
    int       last_dc;             /* DC coefficients are stored as differences                   */
    int       seen;                /* a scan has brought data: quant is set                       */
    uint16_t  quant[64];           /* in rows, as of the first scan                               */
    size_t    w, rows;             /* samples that matter                                         */
    size_t    blocks_w, blocks_h;  /* blocks stored, whole MCUs                                   */
    int16_t  *coefficients;        /* [blocks_h][blocks_w][64], in rows                           */
    uint8_t  *samples;             /* [blocks_h*8][blocks_w*8]                                    */
} img__component;

typedef struct img__jpeg {
    img__job      *job;
    const uint8_t *data;
    size_t         size, at;
    uint32_t       bits;           /* read but not used, next bit highest                         */
    int            bit_count;
    int            padding;        /* how many of them lie beyond the end of the data             */
    size_t         w, h;
    int            count;          /* components; 0: no frame header yet                          */
    int            progressive;
    int            max_h, max_v;   /* largest sampling factors                                    */
    img__component component[4];
    uint16_t       quant[4][64];
    int            has_quant[4];
    img__jpeg_code code[2][4];     /* DC, AC                                                      */
    size_t         restart;        /* MCUs between restart markers, 0: none                       */
    int            scans;
    int            in_scan[4], scan_count;
    int            first, last;    /* coefficients of the scan, in zigzag order                   */
    int            high, low;      /* lowest known bit of coefficients: before (0: none), after   */
    unsigned       end_run;        /* further blocks without new coefficients                     */
    int            jfif, adobe;    /* adobe: -1 absent, else the colour transform                 */
    int            orientation;
} img__jpeg;

static const uint8_t img__zigzag[64] = {
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5, 12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13,  6,  7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63 };

/* -- Bits and codes -- */

/* Tops the bits up to 25 or more; beyond the end with zeros, which are counted. */
static void img__jpeg_fill(img__jpeg *j)
{
    while (j->bit_count <= 24) {
        uint32_t byte = 0;
        if (j->at < j->size && j->data[j->at] != 0xFF) {
            byte = j->data[j->at++];
        } else if (j->size - j->at >= 2 && j->data[j->at + 1] == 0) {
            byte = 0xFF;
            j->at += 2;
        } else {
            j->padding += 8;
        }
        j->bits |= byte << (24 - j->bit_count);
        j->bit_count += 8;
    }
}

static void img__jpeg_drop(img__jpeg *j, int count)
{
    j->bits <<= count;
    j->bit_count -= count;
    if (j->bit_count < j->padding)
        img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data end within a block");
}

/* The next count <= 16 bits. */
static int img__jpeg_bits(img__jpeg *j, int count)
{
    int value;
    if (count == 0)
        return 0;
    img__jpeg_fill(j);
    value = (int)(j->bits >> (32 - count));
    img__jpeg_drop(j, count);
    return value;
}

/* The next count <= 15 bits as a signed value: a leading 0 marks negative ones. */
static int img__jpeg_signed(img__jpeg *j, int count)
{
    int value = img__jpeg_bits(j, count);
    return count > 0 && value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
}

/* The next value of a Huffman code. After a failure: 0. */
static int img__jpeg_value(img__jpeg *j, const img__jpeg_code *code)
{
    int length, bits;
    unsigned fast;
    img__jpeg_fill(j);
    fast = code->fast[j->bits >> (32 - IMG__FAST_BITS)];
    if (fast) {
        img__jpeg_drop(j, (int)(fast >> 8));
        return (int)(fast & 255);
    }
    for (length = IMG__FAST_BITS + 1; length <= 16; length++) {
        bits = (int)(j->bits >> (32 - length));
        if (bits <= code->max_code[length]) {
            img__jpeg_drop(j, length);
            return code->values[(bits + code->offset[length]) & 255];
        }
    }
    return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data hold an impossible code");
}

/* -- Tables and headers -- */

/* DHT: any number of Huffman codes. */
static int img__jpeg_read_codes(img__jpeg *j, const uint8_t *p, size_t size)
{
    while (size > 0) {
        img__jpeg_code *code;
        int length, next = 0, index = 0, i, total = 0;
        if (size < 17 || p[0] > 0x1F || (p[0] & 15) > 3)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG Huffman table is wrong");
        code = &j->code[p[0] >> 4][p[0] & 15];
        for (length = 1; length <= 16; length++)
            total += p[length];
        if (total > 256 || size < 17 + (size_t)total)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG Huffman table is wrong");
        memset(code, 0, sizeof *code);
        memcpy(code->values, p + 17, (size_t)total);
        /* Codes count up within a length and double from one length to the next. */
        for (length = 1; length <= 16; length++, next <<= 1) {
            code->offset[length] = index - next;
            for (i = 0; i < p[length]; i++, next++, index++)
                if (length <= IMG__FAST_BITS && next < 1 << length) {
                    int spare = IMG__FAST_BITS - length, k;
                    int entry = length << 8 | code->values[index];
                    for (k = 0; k < 1 << spare; k++)
                        code->fast[next << spare | k] = (uint16_t)entry;
                }
            if (next > 1 << length)
                return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG Huffman table is too full");
            code->max_code[length] = p[length] ? next - 1 : -1;
        }
        code->defined = 1;
        p += 17 + total;
        size -= 17 + (size_t)total;
    }
    return 1;
}

/* DQT: any number of quantisation tables. */
static int img__jpeg_read_quant(img__jpeg *j, const uint8_t *p, size_t size)
{
    while (size > 0) {
        size_t bytes = p[0] >> 4 ? 2 : 1;
        int i, index = p[0] & 15;
        if (p[0] >> 4 > 1 || index > 3 || size < 1 + 64 * bytes)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG quantisation table is wrong");
        for (i = 0; i < 64; i++)
            j->quant[index][img__zigzag[i]] =
                (uint16_t)(bytes == 2 ? img__u16be(p + 1 + 2 * i) : p[1 + i]);
        j->has_quant[index] = 1;
        p += 1 + 64 * bytes;
        size -= 1 + 64 * bytes;
    }
    return 1;
}

static size_t img__divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

/* SOF: sizes and components. */
static int img__jpeg_read_frame(img__jpeg *j, const uint8_t *p, size_t size)
{
    size_t blocks = 0;
    int i, n;
    if (j->count)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file has two frame headers");
    if (size < 6 || size != 6 + 3 * (size_t)p[5])
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG frame header is wrong");
    if (p[0] != 8)
        return img__fail(j->job, IMG_ERROR_UNSUPPORTED, "JPEG with %d bits per sample", p[0]);
    n = p[5];
    if (n != 1 && n != 3 && n != 4)
        return img__fail(j->job, IMG_ERROR_UNSUPPORTED, "JPEG with %d components", n);
    j->h = img__u16be(p + 1);
    j->w = img__u16be(p + 3);
    if (j->h == 0)
        return img__fail(j->job, IMG_ERROR_UNSUPPORTED, "JPEG that does not announce its height");
    if (j->w == 0)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG header announces no pixels");
    if (!img__check_size(j->job, j->w, j->h))
        return 0;
    j->max_h = j->max_v = 1;
    for (i = 0; i < n; i++) {
        img__component *c = &j->component[i];
        c->id = p[6 + 3 * i];
        c->h = p[7 + 3 * i] >> 4;
        c->v = p[7 + 3 * i] & 15;
        c->quant_index = p[8 + 3 * i];
        if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4 || c->quant_index > 3)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG frame header is wrong");
        if (c->h > j->max_h)
            j->max_h = c->h;
        if (c->v > j->max_v)
            j->max_v = c->v;
    }
    for (i = 0; i < n; i++) {
        img__component *c = &j->component[i];
        size_t mcus_w = img__divide_up(j->w, 8 * (size_t)j->max_h);
        size_t mcus_h = img__divide_up(j->h, 8 * (size_t)j->max_v);
        c->w = img__divide_up(j->w * (size_t)c->h, (size_t)j->max_h);
        c->rows = img__divide_up(j->h * (size_t)c->v, (size_t)j->max_v);
        c->blocks_w = mcus_w * (size_t)c->h;
        c->blocks_h = mcus_h * (size_t)c->v;
        blocks += img__divide_up(c->w, 8) * img__divide_up(c->rows, 8);
    }
    /* Every block takes a bit at least: do not ask for memory that the file cannot fill. */
    if (blocks / 8 > j->size)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "fewer pixels are stored than announced");
    for (i = 0; i < n; i++) {
        img__component *c = &j->component[i];
        blocks = c->blocks_w * c->blocks_h;
        c->coefficients = (int16_t *)img__alloc(j->job, blocks, 64 * sizeof *c->coefficients);
        if (!c->coefficients)
            return 0;
        memset(c->coefficients, 0, blocks * 64 * sizeof *c->coefficients);
    }
    j->count = n;
    return 1;
}

/* -- Scans: each of the five functions decodes one block's share -- */

/* All of a block of a plain file. */
static int img__jpeg_block(img__jpeg *j, img__component *c, int16_t *block)
{
    int k, size = img__jpeg_value(j, &j->code[0][c->dc]);
    if (size > 15)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data hold a wrong coefficient");
    c->last_dc += img__jpeg_signed(j, size);
    if (c->last_dc < -32768 || c->last_dc > 32767)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data hold a wrong coefficient");
    block[0] = (int16_t)c->last_dc;
    for (k = 1; k < 64; k++) {
        int pair = img__jpeg_value(j, &j->code[1][c->ac]), zeros = pair >> 4;
        size = pair & 15;
        if (size == 0 && zeros < 15)
            break;                                   /* nothing more in this block                */
        k += zeros;
        if (k > 63)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data overrun a block");
        if (size)
            block[img__zigzag[k]] = (int16_t)img__jpeg_signed(j, size);
    }
    return j->job->result == IMG_OK;
}

/* Progressive: the DC coefficient without its lowest bits. */
static int img__jpeg_dc_first(img__jpeg *j, img__component *c, int16_t *block)
{
    int size = img__jpeg_value(j, &j->code[0][c->dc]);
    if (size > 15)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data hold a wrong coefficient");
    c->last_dc += img__jpeg_signed(j, size);
    if (c->last_dc < -32768 || c->last_dc > 32767)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data hold a wrong coefficient");
    block[0] = (int16_t)(c->last_dc * (1 << j->low));
    return j->job->result == IMG_OK;
}

/* Progressive: one more bit of the DC coefficient. */
static int img__jpeg_dc_refine(img__jpeg *j, img__component *c, int16_t *block)
{
    (void)c;
    if (img__jpeg_bits(j, 1))
        block[0] = (int16_t)(block[0] | 1 << j->low);
    return j->job->result == IMG_OK;
}

/* Progressive: coefficients first..last without their lowest bits. */
static int img__jpeg_ac_first(img__jpeg *j, img__component *c, int16_t *block)
{
    int k;
    if (j->end_run > 0) {
        j->end_run--;
        return 1;
    }
    for (k = j->first; k <= j->last; k++) {
        int pair = img__jpeg_value(j, &j->code[1][c->ac]), zeros = pair >> 4, size = pair & 15;
        if (size == 0 && zeros < 15) {               /* ends this block and so many more          */
            j->end_run = (1u << zeros) - 1 + (unsigned)img__jpeg_bits(j, zeros);
            break;
        }
        k += zeros;
        if (k > j->last)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG data overrun a block");
        if (size)
            block[img__zigzag[k]] = (int16_t)(img__jpeg_signed(j, size) * (1 << j->low));
    }
    return j->job->result == IMG_OK;
}

/* One more bit for a coefficient that is not zero: it moves away from zero or stays. */
static void img__jpeg_refine(img__jpeg *j, int16_t *coefficient)
{
    int step = 1 << j->low;
    if (img__jpeg_bits(j, 1))
        *coefficient = (int16_t)(*coefficient + (*coefficient > 0 ? step : -step));
}

/* Progressive: one more bit of coefficients first..last. Known ones get a bit each; runs of zeros
   count only the others, and a code may bring one new coefficient, of one bit. */
static int img__jpeg_ac_refine(img__jpeg *j, img__component *c, int16_t *block)
{
    int k = j->first;
    while (j->end_run == 0 && k <= j->last && j->job->result == IMG_OK) {
        int pair = img__jpeg_value(j, &j->code[1][c->ac]), zeros = pair >> 4, fresh = 0;
        if ((pair & 15) == 0 && zeros < 15) {
            j->end_run = (1u << zeros) + (unsigned)img__jpeg_bits(j, zeros);
            break;
        }
        if (pair & 15)
            fresh = img__jpeg_bits(j, 1) ? 1 << j->low : -(1 << j->low);
        for (; k <= j->last; k++) {
            int16_t *coefficient = block + img__zigzag[k];
            if (*coefficient) {
                img__jpeg_refine(j, coefficient);
            } else if (zeros-- == 0) {
                *coefficient = (int16_t)fresh;
                k++;
                break;
            }
        }
    }
    if (j->end_run > 0) {                            /* the rest holds bits for known ones only   */
        for (; k <= j->last; k++)
            if (block[img__zigzag[k]])
                img__jpeg_refine(j, block + img__zigzag[k]);
        j->end_run--;
    }
    return j->job->result == IMG_OK;
}

/* Goes to the next marker, over any garbage. Returns it, or 0 at the end of the file. */
static int img__jpeg_find_marker(img__jpeg *j)
{
    for (; j->size - j->at >= 2; j->at++)
        if (j->data[j->at] == 0xFF && j->data[j->at + 1] != 0 && j->data[j->at + 1] != 0xFF)
            return j->data[j->at + 1];
    return 0;
}

static void img__jpeg_reset(img__jpeg *j)
{
    int i;
    j->bits = 0;
    j->bit_count = 0;
    j->padding = 0;
    j->end_run = 0;
    for (i = 0; i < j->count; i++)
        j->component[i].last_dc = 0;
}

/* All blocks of a scan whose header has been read. */
static int img__jpeg_scan_blocks(img__jpeg *j)
{
    int (*decode)(img__jpeg *, img__component *, int16_t *) =
        !j->progressive ? img__jpeg_block
        : j->first == 0 ? (j->high == 0 ? img__jpeg_dc_first : img__jpeg_dc_refine)
                        : (j->high == 0 ? img__jpeg_ac_first : img__jpeg_ac_refine);
    int single = j->scan_count == 1, i, x, y;
    const img__component *one = &j->component[j->in_scan[0]];
    size_t mcus_w = single ? img__divide_up(one->w, 8) : one->blocks_w / (size_t)one->h;
    size_t mcus_h = single ? img__divide_up(one->rows, 8) : one->blocks_h / (size_t)one->v;
    size_t mcu, total = mcus_w * mcus_h;
    img__jpeg_reset(j);
    for (mcu = 0; mcu < total; mcu++) {
        size_t mcu_x = mcu % mcus_w, mcu_y = mcu / mcus_w;
        if (j->restart && mcu > 0 && mcu % j->restart == 0) {
            int expected = 0xD0 + (int)((mcu / j->restart - 1) & 7);
            if (img__jpeg_find_marker(j) != expected)
                return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG restart marker is missing");
            j->at += 2;
            img__jpeg_reset(j);
        }
        for (i = 0; i < j->scan_count; i++) {
            img__component *c = &j->component[j->in_scan[i]];
            int blocks_w = single ? 1 : c->h, blocks_h = single ? 1 : c->v;
            for (y = 0; y < blocks_h; y++)
                for (x = 0; x < blocks_w; x++) {
                    size_t bx = mcu_x * (size_t)blocks_w + (size_t)x;
                    size_t by = mcu_y * (size_t)blocks_h + (size_t)y;
                    if (!decode(j, c, c->coefficients + (by * c->blocks_w + bx) * 64))
                        return 0;
                }
        }
    }
    return 1;
}

/* SOS: which components, which coefficients; then the data. */
static int img__jpeg_read_scan(img__jpeg *j, const uint8_t *p, size_t size)
{
    int i, k, n = size ? p[0] : 0;
    if (!j->count)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file has data before its header");
    if (n < 1 || n > j->count || size != 4 + 2 * (size_t)n)
        return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG scan header is wrong");
    if (++j->scans > IMG__MAX_SCANS)
        return img__fail(j->job, IMG_ERROR_UNSUPPORTED, "JPEG with over %d scans", IMG__MAX_SCANS);
    j->scan_count = n;
    j->first = j->progressive ? p[1 + 2 * n] : 0;
    j->last = j->progressive ? p[2 + 2 * n] : 63;
    j->high = j->progressive ? p[3 + 2 * n] >> 4 : 0;
    j->low = j->progressive ? p[3 + 2 * n] & 15 : 0;
    if (j->first > j->last || j->last > 63 || j->low > 13 || (j->high && j->high != j->low + 1)
        || (j->progressive && j->first == 0 && j->last != 0) || (j->first > 0 && n != 1))
        return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG scan header is wrong");
    for (i = 0; i < n; i++) {
        img__component *c = NULL;
        for (k = 0; k < j->count && !c; k++)
            if (j->component[k].id == p[1 + 2 * i]) {
                c = &j->component[k];
                j->in_scan[i] = k;
            }
        for (k = 0; k < i; k++)
            if (j->in_scan[k] == j->in_scan[i])
                c = NULL;
        if (!c || p[2 + 2 * i] >> 4 > 3 || (p[2 + 2 * i] & 15) > 3)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG scan header is wrong");
        c->dc = p[2 + 2 * i] >> 4;
        c->ac = p[2 + 2 * i] & 15;
        if ((j->first == 0 && j->high == 0 && !j->code[0][c->dc].defined)
            || (j->last > 0 && !j->code[1][c->ac].defined) || !j->has_quant[c->quant_index])
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG scan lacks its tables");
        if (!c->seen)
            memcpy(c->quant, j->quant[c->quant_index], sizeof c->quant);
        c->seen = 1;
    }
    return img__jpeg_scan_blocks(j);
}

/* APPn: only what changes the picture. */
static void img__jpeg_read_app(img__jpeg *j, int marker, const uint8_t *p, size_t size)
{
    if (marker == 0xE0 && size >= 5 && memcmp(p, "JFIF", 5) == 0)
        j->jfif = 1;
    else if (marker == 0xE1 && size >= 6 && memcmp(p, "Exif\0", 6) == 0 && j->orientation == 0)
        j->orientation = img__exif_orientation(p + 6, size - 6);
    else if (marker == 0xEE && size >= 12 && memcmp(p, "Adobe", 5) == 0)
        j->adobe = p[11];
}

/* Everything up to EOI. */
static int img__jpeg_segments(img__jpeg *j)
{
    int i;
    j->at = 2;                                       /* SOI has been checked                      */
    for (;;) {
        int marker = img__jpeg_find_marker(j), good = 1;
        const uint8_t *p;
        size_t length;
        if (marker == 0)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file is cut short");
        j->at += 2;
        if (marker == 0xD9)
            break;
        if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7))
            continue;                                /* these have no content                     */
        if (j->size - j->at < 2 || (length = img__u16be(j->data + j->at)) > j->size - j->at)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file is cut short");
        if (length < 2)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG segment has a wrong length");
        p = j->data + j->at + 2;
        j->at += length;
        length -= 2;
        if (marker == 0xC4) {
            good = img__jpeg_read_codes(j, p, length);
        } else if (marker == 0xDB) {
            good = img__jpeg_read_quant(j, p, length);
        } else if (marker == 0xC0 || marker == 0xC1 || marker == 0xC2) {
            j->progressive = marker == 0xC2;
            good = img__jpeg_read_frame(j, p, length);
        } else if (marker == 0xDD) {
            if (length != 2)
                return img__fail(j->job, IMG_ERROR_CORRUPT, "a JPEG segment has a wrong length");
            j->restart = img__u16be(p);
        } else if (marker == 0xDA) {
            good = img__jpeg_read_scan(j, p, length);
        } else if (marker >= 0xC3 && marker <= 0xCF && marker != 0xC8) {
            return img__fail(j->job, IMG_ERROR_UNSUPPORTED,
                             "lossless, hierarchical or arithmetic JPEG (SOF%d)", marker - 0xC0);
        } else {
            img__jpeg_read_app(j, marker, p, length);
        }
        if (!good)
            return 0;
    }
    for (i = 0; i < j->count; i++)
        if (!j->component[i].seen)
            return img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file lacks component %d", i + 1);
    return j->count ? 1 : img__fail(j->job, IMG_ERROR_CORRUPT, "the JPEG file has no picture");
}

/* -- From coefficients to samples -- */

static int img__clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* One-dimensional inverse cosine transform of in[0], in[step], ..., times sqrt(8) * 2^13 / 2^shift;
   it is symmetric, so even and odd inputs are summed apart. The factors are sqrt(2) cos(k pi / 16)
   in units of 2^-13. Those of equal k differ in the last digit because libjpeg derives them from
   rounded factors of Loeffler, Ligtenberg and Moschytz' fast transform (ICASSP 1989); with
   |in| <= 32768 the sums stay within 31 bits. */
static void img__idct_1d(int32_t *in, int step, int shift)
{
    static const int32_t odd_factor[4][4] = {        /* [output][input 1, 3, 5, 7]                */
        { 11363,   9633,   6437,   2260 },
        {  9633,  -2259, -11362,  -6436 },
        {  6437, -11362,   2261,   9633 },
        {  2260,  -6436,   9633, -11363 } };
    int32_t x0 = in[0], x1 = in[step], x2 = in[2 * step], x3 = in[3 * step], x4 = in[4 * step];
    int32_t x5 = in[5 * step], x6 = in[6 * step], x7 = in[7 * step];
    int32_t half = 1 << (shift - 1), even[4];
    int i;
    even[0] = (x0 + x4) * 8192 + x2 * 10703 + x6 * 4433;
    even[1] = (x0 - x4) * 8192 + x2 * 4433 - x6 * 10704;
    even[2] = (x0 - x4) * 8192 - x2 * 4433 + x6 * 10704;
    even[3] = (x0 + x4) * 8192 - x2 * 10703 - x6 * 4433;
    for (i = 0; i < 4; i++) {
        const int32_t *f = odd_factor[i];
        int32_t odd = x1 * f[0] + x3 * f[1] + x5 * f[2] + x7 * f[3];
        in[i * step] = (even[i] + odd + half) >> shift;
        in[(7 - i) * step] = (even[i] - odd + half) >> shift;
    }
}

/* Transforms all blocks of a component into samples; the coefficients are released. */
static int img__jpeg_transform(img__jpeg *j, img__component *c)
{
    size_t bx, by, row = c->blocks_w * 8;
    int i;
    c->samples = (uint8_t *)img__alloc(j->job, c->blocks_w * c->blocks_h, 64);
    if (!c->samples)
        return 0;
    for (by = 0; by < c->blocks_h; by++)
        for (bx = 0; bx < c->blocks_w; bx++) {
            const int16_t *block = c->coefficients + (by * c->blocks_w + bx) * 64;
            uint8_t *to = c->samples + by * 8 * row + bx * 8;
            int32_t v[64];
            for (i = 0; i < 64; i++)
                v[i] = img__clamp(block[i] * c->quant[i], -32768, 32767);
            for (i = 0; i < 8; i++)                  /* columns, keeping 2 bits of fraction       */
                img__idct_1d(v + i, 8, 13 - 2);
            for (i = 0; i < 64; i++)
                v[i] = img__clamp(v[i], -32768, 32767);
            for (i = 0; i < 8; i++)                  /* rows; 3 bits are the two factors sqrt(8)  */
                img__idct_1d(v + 8 * i, 1, 13 + 2 + 3);
            for (i = 0; i < 64; i++)
                to[(size_t)(i / 8) * row + (size_t)(i % 8)] =
                    (uint8_t)img__clamp(v[i] + 128, 0, 255);
        }
    IMG_FREE(c->coefficients);
    c->coefficients = NULL;
    return 1;
}

/* One row of a component at the picture's size: out has room for w + 1 samples.
   A half-size direction is enlarged by a triangle filter: 3/4 of the nearer sample and 1/4 of the
   next, rounded up and down alternately. In all other cases libjpeg repeats samples. */
static void img__jpeg_enlarge(const img__jpeg *j, const img__component *c, size_t y, uint8_t *out)
{
    size_t stride = c->blocks_w * 8, n = c->w, x;
    int half_w = c->h * 2 == j->max_h, half_h = c->v * 2 == j->max_v;
    int full_w = c->h == j->max_h, full_h = c->v == j->max_v;
    size_t source_y = y * (size_t)c->v / (size_t)j->max_v;
    const uint8_t *near_row = c->samples + source_y * stride, *far_row = near_row;
    if (half_h && y % 2 == 0 && source_y > 0)
        far_row = near_row - stride;
    if (half_h && y % 2 == 1 && source_y + 1 < c->rows)
        far_row = near_row + stride;

    if (full_w && full_h) {
        memcpy(out, near_row, n);
    } else if (full_w && half_h) {
        for (x = 0; x < n; x++)
            out[x] = (uint8_t)((3 * near_row[x] + far_row[x] + (y % 2 ? 2 : 1)) >> 2);
    } else if (half_w && full_h && n > 2) {
        for (x = 0; x < n; x++) {
            int here = 3 * near_row[x];
            out[2 * x] = (uint8_t)(x > 0 ? (here + near_row[x - 1] + 1) >> 2 : near_row[x]);
            out[2 * x + 1] = (uint8_t)(x + 1 < n ? (here + near_row[x + 1] + 2) >> 2 : near_row[x]);
        }
    } else if (half_w && half_h && n > 2) {
        int before, here = 3 * near_row[0] + far_row[0], after = here;
        for (x = 0; x < n; x++) {                    /* columns are blended first, times 4        */
            before = x > 0 ? here : after;
            here = after;
            if (x + 1 < n)
                after = 3 * near_row[x + 1] + far_row[x + 1];
            out[2 * x] = (uint8_t)((3 * here + before + 8) >> 4);
            out[2 * x + 1] = (uint8_t)((3 * here + after + 7) >> 4);
        }
    } else {
        for (x = 0; x < j->w; x++)
            out[x] = near_row[x * (size_t)c->h / (size_t)j->max_h];
    }
}

/* BT.601 in 16-bit fixed point, as JFIF prescribes. */
static void img__ycc_to_rgb(int y, int cb, int cr, int rgb[3])
{
    cb -= 128;
    cr -= 128;
    rgb[0] = img__clamp(y + ((91881 * cr + 32768) >> 16), 0, 255);
    rgb[1] = img__clamp(y + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255);
    rgb[2] = img__clamp(y + ((116130 * cb + 32768) >> 16), 0, 255);
}

/* Are the first three components YCbCr? As libjpeg decides: markers first, then names. */
static int img__jpeg_is_ycc(const img__jpeg *j)
{
    const img__component *c = j->component;
    if (j->count == 4)
        return j->adobe == 2;
    if (j->jfif)
        return 1;
    if (j->adobe >= 0)
        return j->adobe != 0;
    return !(c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B');
}

/* rows: the components' enlarged rows, one after another, stride apart. */
static void img__jpeg_convert_row(const img__jpeg *j, const uint8_t *rows, size_t stride,
                                  uint8_t *rgb)
{
    int is_ycc = j->count > 1 && img__jpeg_is_ycc(j), i;
    size_t x;
    for (x = 0; x < j->w; x++, rgb += 3) {
        const uint8_t *p = rows + x;
        int color[3];
        if (j->count == 1) {
            color[0] = color[1] = color[2] = p[0];
        } else if (is_ycc) {
            img__ycc_to_rgb(p[0], p[stride], p[2 * stride], color);
        } else {
            for (i = 0; i < 3; i++)
                color[i] = p[(size_t)i * stride];
        }
        /* Four components are inks, by Adobe's convention stored inverted: 255 is none. */
        for (i = 0; j->count == 4 && i < 3; i++) {
            int ink = is_ycc ? color[i] : 255 - color[i];
            int key = p[3 * stride];
            color[i] = img__clamp(key - (int)img__mul255((unsigned)ink, (unsigned)key), 0, 255);
        }
        for (i = 0; i < 3; i++)
            rgb[i] = (uint8_t)color[i];
    }
}

static int img__jpeg_pixels(img__jpeg *j, img_image *out)
{
    size_t stride = j->w + 1, y;
    uint8_t *rows;
    int i;
    for (i = 0; i < j->count; i++)
        if (!img__jpeg_transform(j, &j->component[i]))
            return 0;
    if (!img__new(j->job, j->w, j->h, out))
        return 0;
    rows = (uint8_t *)img__alloc(j->job, stride, (size_t)j->count);
    if (!rows)
        return 0;
    for (y = 0; y < j->h; y++) {
        for (i = 0; i < j->count; i++)
            img__jpeg_enlarge(j, &j->component[i], y, rows + (size_t)i * stride);
        img__jpeg_convert_row(j, rows, stride, out->rgb + y * j->w * 3);
    }
    IMG_FREE(rows);
    return 1;
}

static int img__jpeg_load(img__job *job, const uint8_t *data, size_t size, img_image *out,
                          int *orientation)
{
    img__jpeg *j = (img__jpeg *)img__alloc(job, 1, sizeof *j);
    int i, good;
    if (!j)
        return 0;
    memset(j, 0, sizeof *j);
    j->job = job;
    j->data = data;
    j->size = size;
    j->adobe = -1;
    good = img__jpeg_segments(j) && img__jpeg_pixels(j, out);
    *orientation = j->orientation ? j->orientation : 1;
    for (i = 0; i < 4; i++) {
        IMG_FREE(j->component[i].coefficients);
        IMG_FREE(j->component[i].samples);
    }
    IMG_FREE(j);
    return good;
}

/* ---- [IMG-07] Loading ------------------------------------------------------------------------ */

/* Turns a picture upright. Orientations: 2 mirrored, 3 upside down, 4 both; 5 to 8 have rows and
   columns exchanged: 5 no more than that, 6 and 8 lie on their side, 7 is 5 upside down. */
static int img__orient(img__job *job, img_image *image, int orientation)
{
    int swap = orientation >= 5;
    int mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    int mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    size_t x, y;
    img_image out;
    if (orientation == 1)
        return 1;
    if (!img__new(job, swap ? image->h : image->w, swap ? image->w : image->h, &out))
        return 0;
    for (y = 0; y < out.h; y++)
        for (x = 0; x < out.w; x++) {
            size_t from_x = swap ? y : x, from_y = swap ? x : y;
            if (mirror_x)
                from_x = image->w - 1 - from_x;
            if (mirror_y)
                from_y = image->h - 1 - from_y;
            memcpy(out.rgb + (y * out.w + x) * 3, image->rgb + (from_y * image->w + from_x) * 3, 3);
        }
    img_free(image);
    *image = out;
    return 1;
}

static int img__is_png(const uint8_t *data, size_t size)
{
    return size >= 8 && memcmp(data, img__png_signature, 8) == 0;
}

static int img__is_jpeg(const uint8_t *data, size_t size)
{
    return size >= 3 && memcmp(data, "\xFF\xD8\xFF", 3) == 0;
}

static img_result img__load(img__job *job, const uint8_t *data, size_t size, img_image *out)
{
    int orientation = 1, good;
    if (img__is_png(data, size))
        good = img__png_load(job, data, size, out, &orientation);
    else if (img__is_jpeg(data, size))
        good = img__jpeg_load(job, data, size, out, &orientation);
    else
        good = img__fail(job, IMG_ERROR_FORMAT, "is neither a PNG nor a JPEG file");
    if (!good || !img__orient(job, out, orientation))
        img_free(out);
    return job->result;
}

IMG_API img_result img_load_memory(const void *data, size_t size, const char *name,
                                   img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin(name ? name : "img_load_memory", err, errsize);
    memset(out, 0, sizeof *out);
    if (!data && size > 0) {
        img__fail(&job, IMG_ERROR_ARGUMENT, "no data were given");
        return job.result;
    }
    return img__load(&job, (const uint8_t *)data, size, out);
}

/* Reads a whole file; of one that should be a picture and is none (a film among the photos) the
   first bytes. *data is to be released. */
static int img__read_file(img__job *job, const char *path, int picture, uint8_t **data,
                          size_t *size)
{
    uint8_t head[8];
    FILE *file = fopen(path, "rb");
    long length = -1;
    *data = NULL;
    *size = 0;
    if (!file)
        return img__fail(job, IMG_ERROR_FILE, "cannot open (%s)", strerror(errno));
    if (fseek(file, 0, SEEK_END) == 0)
        length = ftell(file);
    /* A directory can be opened, but its end is nowhere. */
    if (length < 0 || length > 0x7FFFFFF0L || fseek(file, 0, SEEK_SET) != 0) {
        img__fail(job, IMG_ERROR_FILE, "is not a file of readable size");
        fclose(file);
        return 0;
    }
    if (picture && length > 8 && fread(head, 1, 8, file) == 8 && !img__is_png(head, 8) &&
        !img__is_jpeg(head, 8))
        length = 8;
    rewind(file);
    if ((*data = (uint8_t *)img__alloc(job, (size_t)length, 1)) != NULL) {
        *size = fread(*data, 1, (size_t)length, file);
        if (*size != (size_t)length)
            img__fail(job, IMG_ERROR_FILE, "cannot read (%s)", strerror(errno));
    }
    fclose(file);
    return job->result == IMG_OK;
}

IMG_API img_result img_load(const char *path, img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin(path ? path : "img_load", err, errsize);
    uint8_t *data = NULL;
    size_t size;
    memset(out, 0, sizeof *out);
    if (!path)
        img__fail(&job, IMG_ERROR_ARGUMENT, "no path was given");
    else if (img__read_file(&job, path, 1, &data, &size))
        img__load(&job, data, size, out);
    IMG_FREE(data);
    return job.result;
}

/* ---- [IMG-08] Crop and resize ------------------------------------------------------------------
   A resized sample is a weighted mean of the samples under a triangle that is two output pixels
   wide, or two input pixels where the picture grows. First the width is changed, then the height.

   Easy to get wrong
   - Pixels are areas: output pixel i is centred at (i + 1/2) * in / out - 1/2, not at i * in / out.
   - Weights are normalised after the picture's edge has cut some off.                            */

IMG_API img_result img_crop(const uint8_t *rgb, size_t in_w, size_t in_h, size_t x, size_t y,
                            size_t w, size_t h, img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin("img_crop", err, errsize);
    size_t row;
    memset(out, 0, sizeof *out);
    if (!rgb || x > in_w || y > in_h || w > in_w - x || h > in_h - y)
        img__fail(&job, IMG_ERROR_ARGUMENT, "%lu x %lu pixels at (%lu, %lu) reach beyond %lu x %lu",
                  (unsigned long)w, (unsigned long)h, (unsigned long)x, (unsigned long)y,
                  (unsigned long)in_w, (unsigned long)in_h);
    else if (img__new(&job, w, h, out))
        for (row = 0; row < h; row++)
            memcpy(out->rgb + row * w * 3, rgb + ((y + row) * in_w + x) * 3, w * 3);
    return job.result;
}

enum { IMG__WEIGHT_BITS = 22 };    /* 255 * 2^22 fits 31 bits                                     */

/* Scales the middle axis of in [outer][in_n][inner] to out [outer][out_n][inner]. */
static int img__resize_axis(img__job *job, const uint8_t *in, size_t outer, size_t in_n,
                            size_t inner, size_t out_n, uint8_t *out)
{
    double scale = (double)in_n / (double)out_n, reach = scale > 1 ? scale : 1;
    size_t most = (size_t)ceil(reach) * 2 + 1, i, k, o, c;
    double *exact = (double *)img__alloc(job, most, sizeof *exact);
    int32_t *weight = (int32_t *)img__alloc(job, most, sizeof *weight);
    for (i = 0; exact && weight && i < out_n; i++) {
        double center = ((double)i + 0.5) * scale, sum = 0;
        double low = center - reach + 0.5, high = center + reach + 0.5;
        size_t begin = low > 0 ? (size_t)low : 0, end = (size_t)high < in_n ? (size_t)high : in_n;
        for (k = begin; k < end; k++) {
            double distance = fabs((double)k + 0.5 - center) / reach;
            exact[k - begin] = distance < 1 ? 1 - distance : 0;
            sum += exact[k - begin];
        }
        for (k = begin; k < end; k++)
            weight[k - begin] =
                (int32_t)floor(exact[k - begin] / sum * (1 << IMG__WEIGHT_BITS) + 0.5);
        for (o = 0; o < outer; o++)
            for (c = 0; c < inner; c++) {
                const uint8_t *from = in + (o * in_n + begin) * inner + c;
                int32_t total = 1 << (IMG__WEIGHT_BITS - 1);
                for (k = 0; k < end - begin; k++)
                    total += from[k * inner] * weight[k];
                out[(o * out_n + i) * inner + c] =
                    (uint8_t)img__clamp(total >> IMG__WEIGHT_BITS, 0, 255);
            }
    }
    IMG_FREE(exact);
    IMG_FREE(weight);
    return job->result == IMG_OK;
}

IMG_API img_result img_resize(const uint8_t *rgb, size_t in_w, size_t in_h, size_t w, size_t h,
                              img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin("img_resize", err, errsize);
    img_image wide;
    memset(out, 0, sizeof *out);
    if (!rgb)
        img__fail(&job, IMG_ERROR_ARGUMENT, "no pixels were given");
    else if (img__check_size(&job, in_w, in_h) && img__check_size(&job, w, h)
             && img__new(&job, w, in_h, &wide)) {
        if (!img__new(&job, w, h, out) || !img__resize_axis(&job, rgb, in_h, in_w, 3, w, wide.rgb)
            || !img__resize_axis(&job, wide.rgb, 1, in_h, w * 3, h, out->rgb))
            img_free(out);
        img_free(&wide);
    }
    return job.result;
}

/* ---- [IMG-09] Canvas and font ------------------------------------------------------------------
   Colours are 0xRRGGBB. Drawing outside the picture has no effect.

   The font is drawn below as it looks: twelve glyphs side by side in each band, ' ' to '~', then
   the box for everything else. Rows 0..6 hold capitals, rows 7 and 8 what hangs below the line.  */

enum {
    IMG__LETTER_W   = 6,           /* advance: 5 pixels of glyph and 1 between                    */
    IMG__LINE_H     = 11,          /* 9 rows of glyph and 2 between lines                         */
    IMG__GLYPH_ROWS = 9,
    IMG__BAND       = 12,          /* glyphs per band                                             */
    IMG__INK        = 0x202020,
    IMG__GREY       = 0x606060,
    IMG__PALE       = 0xE2E2E2
};

static const char *const img__font[] = {
    /* space ! " # $ % & ' ( ) * + */
    "..... ..#.. .#.#. .#.#. ..#.. ##..# .##.. ..#.. ...#. .#... ..... .....",
    "..... ..#.. .#.#. .#.#. .#### ##..# #..#. ..#.. ..#.. ..#.. ..#.. ..#..",
    "..... ..#.. .#.#. ##### #.#.. ...#. #.#.. ..#.. .#... ...#. #.#.# ..#..",
    "..... ..#.. ..... .#.#. .###. ..#.. .#... ..... .#... ...#. .###. #####",
    "..... ..#.. ..... ##### ..#.# .#... #.#.# ..... .#... ...#. #.#.# ..#..",
    "..... ..... ..... .#.#. ####. #..## #..#. ..... ..#.. ..#.. ..#.. ..#..",
    "..... ..#.. ..... .#.#. ..#.. #..## .##.# ..... ...#. .#... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    /* , - . / 0 1 2 3 4 5 6 7 */
    "..... ..... ..... ....# .###. ..#.. .###. .###. ...#. ##### ..##. #####",
    "..... ..... ..... ....# #...# .##.. #...# #...# ..##. #.... .#... ....#",
    "..... ..... ..... ...#. #..## ..#.. ....# ....# .#.#. ####. #.... ...#.",
    "..... ##### ..... ..#.. #.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#..",
    "..... ..... ..... .#... ##..# ..#.. ..#.. ....# ##### ....# #...# ..#..",
    ".##.. ..... .##.. #.... #...# ..#.. .#... #...# ...#. #...# #...# ..#..",
    ".##.. ..... .##.. #.... .###. .###. ##### .###. ...#. .###. .###. ..#..",
    "..#.. ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    ".#... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    /* 8 9 : ; < = > ? @ A B C */
    ".###. .###. ..... ..... ...#. ..... .#... .###. .###. .###. ####. .###.",
    "#...# #...# .##.. .##.. ..#.. ..... ..#.. #...# #...# #...# #...# #...#",
    "#...# #...# .##.. .##.. .#... ##### ...#. ....# #.### #...# #...# #....",
    ".###. .#### ..... ..... #.... ..... ....# ...#. #.#.# ##### ####. #....",
    "#...# ....# ..... ..... .#... ##### ...#. ..#.. #.### #...# #...# #....",
    "#...# ...#. .##.. .##.. ..#.. ..... ..#.. ..... #.... #...# #...# #...#",
    ".###. .##.. .##.. .##.. ...#. ..... .#... ..#.. .#### #...# ####. .###.",
    "..... ..... ..... ..#.. ..... ..... ..... ..... ..... ..... ..... .....",
    "..... ..... ..... .#... ..... ..... ..... ..... ..... ..... ..... .....",
    /* D E F G H I J K L M N O */
    "####. ##### ##### .###. #...# .###. ..### #...# #.... #...# #...# .###.",
    "#...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.## ##..# #...#",
    "#...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.# ##..# #...#",
    "#...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.# #.#.# #...#",
    "#...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...# #..## #...#",
    "#...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...# #..## #...#",
    "####. ##### #.... .#### #...# .###. .##.. #...# ##### #...# #...# .###.",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    /* P Q R S T U V W X Y Z [ */
    "####. .###. ####. .#### ##### #...# #...# #...# #...# #...# ##### .###.",
    "#...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....# .#...",
    "#...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#. .#...",
    "####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#.. .#...",
    "#.... #.#.# #.#.. ....# ..#.. #...# .#.#. #.#.# .#.#. ..#.. .#... .#...",
    "#.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #.... .#...",
    "#.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. ##### .###.",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    /* \ ] ^ _ ` a b c d e f g */
    "#.... .###. ..#.. ..... .#... ..... #.... ..... ....# ..... ..##. .....",
    "#.... ...#. .#.#. ..... ..#.. ..... #.... ..... ....# ..... .#..# .....",
    ".#... ...#. #...# ..... ...#. .###. ####. .###. .#### .###. .#... .####",
    "..#.. ...#. ..... ..... ..... ....# #...# #.... #...# #...# ####. #...#",
    "...#. ...#. ..... ..... ..... .#### #...# #.... #...# ##### .#... #...#",
    "....# ...#. ..... ..... ..... #...# #...# #...# #...# #.... .#... #...#",
    "....# .###. ..... ..... ..... .#### ####. .###. .#### .###. .#... .####",
    "..... ..... ..... ##### ..... ..... ..... ..... ..... ..... ..... ....#",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .###.",
    /* h i j k l m n o p q r s */
    "#.... ..#.. ...#. #.... .##.. ..... ..... ..... ..... ..... ..... .....",
    "#.... ..... ..... #.... ..#.. ..... ..... ..... ..... ..... ..... .....",
    "#.##. .##.. ..##. #..#. ..#.. ##.#. #.##. .###. ####. .#### #.##. .####",
    "##..# ..#.. ...#. #.#.. ..#.. #.#.# ##..# #...# #...# #...# ##..# #....",
    "#...# ..#.. ...#. ##... ..#.. #.#.# #...# #...# #...# #...# #.... .###.",
    "#...# ..#.. ...#. #.#.. ..#.. #.#.# #...# #...# #...# #...# #.... ....#",
    "#...# .###. ...#. #..#. .###. #.#.# #...# .###. ####. .#### #.... ####.",
    "..... ..... #..#. ..... ..... ..... ..... ..... #.... ....# ..... .....",
    "..... ..... .##.. ..... ..... ..... ..... ..... #.... ....# ..... .....",
    /* t u v w x y z { | } ~ box */
    ".#... ..... ..... ..... ..... ..... ..... ...## ..#.. ##... ..... #####",
    ".#... ..... ..... ..... ..... ..... ..... ..#.. ..#.. ..#.. ..... #...#",
    "####. #...# #...# #...# #...# #...# ##### ..#.. ..#.. ..#.. .#..# #...#",
    ".#... #...# #...# #...# .#.#. #...# ...#. .#... ..#.. ...#. #.#.# #...#",
    ".#... #...# .#.#. #.#.# ..#.. #...# ..#.. ..#.. ..#.. ..#.. #..#. #...#",
    ".#..# #..## .#.#. #.#.# .#.#. .#.## .#... ..#.. ..#.. ..#.. ..... #...#",
    "..##. .##.# ..#.. .#.#. #...# ..#.# ##### ...## ..#.. ##... ..... #####",
    "..... ..... ..... ..... ..... ....# ..... ..... ..#.. ..... ..... .....",
    "..... ..... ..... ..... ..... .###. ..... ..... ..... ..... ..... .....",
};

static void img__fill(img_image *image, uint32_t color, size_t x0, size_t y0, size_t w, size_t h)
{
    size_t x, y;
    for (y = y0; y < y0 + h && y < image->h; y++)
        for (x = x0; x < x0 + w && x < image->w; x++) {
            uint8_t *p = image->rgb + (y * image->w + x) * 3;
            p[0] = (uint8_t)(color >> 16);
            p[1] = (uint8_t)(color >> 8);
            p[2] = (uint8_t)color;
        }
}

/* New white paper. */
static int img__new_paper(img__job *job, size_t w, size_t h, img_image *image)
{
    if (!img__new(job, w, h, image))
        return 0;
    memset(image->rgb, 255, w * h * 3);
    return 1;
}

/* UTF-8: bytes 10xxxxxx continue a letter, all others begin one. */
static int img__begins_letter(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}

static size_t img__count_letters(const char *text, size_t bytes)
{
    size_t i, letters = 0;
    for (i = 0; i < bytes; i++)
        letters += (size_t)img__begins_letter(text[i]);
    return letters;
}

/* Draws the text's first bytes on one line, its top left corner at x, y. */
static void img__draw_text(img_image *image, uint32_t color, size_t scale, size_t x, size_t y,
                           const char *text, size_t bytes)
{
    size_t i, row, column;
    for (i = 0; i < bytes; i++) {
        unsigned code = (unsigned char)text[i];
        size_t glyph = code >= 32 && code < 127 ? code - 32 : 95;
        if (!img__begins_letter(text[i]))
            continue;
        for (row = 0; row < IMG__GLYPH_ROWS; row++) {
            const char *dots = img__font[glyph / IMG__BAND * IMG__GLYPH_ROWS + row]
                             + glyph % IMG__BAND * IMG__LETTER_W;
            for (column = 0; column < IMG__LETTER_W - 1; column++)
                if (dots[column] == '#')
                    img__fill(image, color, x + column * scale, y + row * scale, scale, scale);
        }
        x += IMG__LETTER_W * scale;
    }
}

/* Takes the next line of at most columns >= 1 letters off *text, broken at a space where there is
   one. Returns its length in bytes. */
static size_t img__take_line(const char **text, size_t columns)
{
    const char *s = *text;
    size_t i, space = 0, letters = 0;
    for (i = 0; s[i] && s[i] != '\n'; i++) {
        if (s[i] == ' ')
            space = i;
        if (img__begins_letter(s[i]) && letters++ == columns) {
            i = space ? space : i;
            for (*text = s + i; **text == ' '; (*text)++) {}
            return i;
        }
    }
    *text = s + i + (s[i] == '\n');
    return i;
}

/* Draws text wrapped to columns letters; image NULL: only measures. Returns the number of lines. */
static size_t img__draw_wrapped(img_image *image, uint32_t color, size_t scale, size_t x, size_t y,
                                size_t columns, const char *text)
{
    size_t lines = 0;
    if (!text)
        return 0;
    while (*text) {
        const char *line = text;
        size_t bytes = img__take_line(&text, columns);
        if (image)
            img__draw_text(image, color, scale, x, y + lines * IMG__LINE_H * scale, line, bytes);
        lines++;
    }
    return lines;
}

/* ---- [IMG-10] Labelled grid --------------------------------------------------------------------
   A title, then rows of pictures; the tallest caption of a row decides the row's height.         */

IMG_API img_grid_config img_grid_config_default(void)
{
    img_grid_config config;
    memset(&config, 0, sizeof config);
    config.scale = 1;
    return config;
}

/* Where everything goes, in pixels. */
typedef struct img__layout {
    size_t columns, rows;          /* of pictures                                                 */
    size_t scale, text, title;     /* magnification of pictures, captions and title               */
    size_t cell_w, picture_h;      /* a picture's place, without its caption                      */
    size_t gap, margin;            /* between pictures; around everything                         */
    size_t letters, title_letters; /* per line                                                    */
    size_t title_lines;
} img__layout;

/* The number of lines below the pictures of one row. */
static size_t img__caption_lines(const img__layout *l, const char *const *captions, size_t n,
                                 size_t row)
{
    size_t i, lines, most = 0;
    for (i = row * l->columns; captions && i < n && i < (row + 1) * l->columns; i++) {
        lines = img__draw_wrapped(NULL, 0, 1, 0, 0, l->letters, captions[i]);
        if (lines > most)
            most = lines;
    }
    return most;
}

/* A row's height: pictures, a small gap, captions. */
static size_t img__row_height(const img__layout *l, size_t caption_lines)
{
    size_t h = l->picture_h;
    if (caption_lines)
        h += l->gap / 2 + caption_lines * IMG__LINE_H * l->text;
    return h + l->gap;
}

static void img__draw_picture(img_image *out, const uint8_t *rgb, size_t w, size_t h, size_t scale,
                              size_t x0, size_t y0)
{
    size_t x, y;
    /* A pale frame keeps white pictures apart from the paper. */
    img__fill(out, IMG__PALE, x0 - 1, y0 - 1, w * scale + 2, h * scale + 2);
    for (y = 0; y < h * scale; y++) {
        uint8_t *to = out->rgb + ((y0 + y) * out->w + x0) * 3;
        const uint8_t *from = rgb + y / scale * w * 3;
        for (x = 0; x < w * scale; x++)
            memcpy(to + x * 3, from + x / scale * 3, 3);
    }
}

IMG_API img_result img_grid(const uint8_t *const *pictures, const char *const *captions, size_t n,
                            size_t w, size_t h, const img_grid_config *config,
                            img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin("img_grid", err, errsize);
    img_grid_config c = config ? *config : img_grid_config_default();
    img__layout l;
    size_t row, i, y, total_w, total_h;
    memset(out, 0, sizeof *out);
    memset(&l, 0, sizeof l);
    if (!pictures || n == 0 || c.scale == 0) {
        img__fail(&job, IMG_ERROR_ARGUMENT, "needs at least one picture and a scale of at least 1");
        return job.result;
    }
    if (!img__check_size(&job, w, h))
        return job.result;
    if (n > IMG_MAX_PIXELS || w > IMG_MAX_SIDE / c.scale || h > IMG_MAX_SIDE / c.scale ||
        c.text_scale > 64) {
        img__fail(&job, IMG_ERROR_SIZE_LIMIT, "%lu pictures of %lu x %lu, times %lu, are too many",
                  (unsigned long)n, (unsigned long)w, (unsigned long)h, (unsigned long)c.scale);
        return job.result;
    }

    l.columns = c.columns < n ? c.columns : n;
    if (l.columns == 0)
        while (l.columns * l.columns < n)
            l.columns++;
    l.rows = (n + l.columns - 1) / l.columns;
    l.scale = c.scale;
    l.text = c.text_scale ? c.text_scale : 1 + w * c.scale / 384;
    l.title = l.text + 1;
    l.gap = 8 * l.text;
    l.margin = 12 * l.text;
    l.picture_h = h * c.scale;
    l.cell_w = w * c.scale;
    if (captions && l.cell_w < 16 * IMG__LETTER_W * l.text)
        l.cell_w = 16 * IMG__LETTER_W * l.text;
    l.letters = l.cell_w / (IMG__LETTER_W * l.text);
    if (l.letters == 0)
        l.letters = 1;

    total_w = l.columns <= IMG_MAX_SIDE ? 2 * l.margin + l.columns * (l.cell_w + l.gap) - l.gap
                                        : IMG_MAX_SIDE + 1;
    l.title_letters = (total_w - 2 * l.margin) / (IMG__LETTER_W * l.title) + 1;
    l.title_lines = img__draw_wrapped(NULL, 0, 1, 0, 0, l.title_letters, c.title);
    y = l.margin;
    if (l.title_lines)
        y += l.title_lines * IMG__LINE_H * l.title + l.gap;
    total_h = y;
    for (row = 0; row < l.rows && total_h <= IMG_MAX_SIDE; row++)
        total_h += img__row_height(&l, img__caption_lines(&l, captions, n, row));
    total_h += l.margin - l.gap;
    if (!img__new_paper(&job, total_w, total_h, out))
        return job.result;

    img__draw_wrapped(out, IMG__INK, l.title, l.margin, l.margin, l.title_letters, c.title);
    for (row = 0; row < l.rows; row++) {
        for (i = row * l.columns; i < n && i < (row + 1) * l.columns; i++) {
            size_t x = l.margin + i % l.columns * (l.cell_w + l.gap);
            if (pictures[i])
                img__draw_picture(out, pictures[i], w, h, l.scale, x, y);
            if (captions)
                img__draw_wrapped(out, IMG__GREY, l.text, x, y + l.picture_h + l.gap / 2, l.letters,
                                  captions[i]);
        }
        y += img__row_height(&l, img__caption_lines(&l, captions, n, row));
    }
    return job.result;
}

/* ---- [IMG-11] Line plot ------------------------------------------------------------------------
   Title, legend, y label, then the axes' rectangle with ticks at round numbers, then the x label.
   A curve is drawn by coverage: each pixel's share of a line of the wanted width, taken from its
   distance to the line, so that slanted lines are smooth.

   Easy to get wrong
   - Where segments meet, both cover the same pixels: a curve's coverage is the maximum over its
     segments, painted once.                                                                      */

enum { IMG__TICKS = 64 };          /* more than fit any axis                                      */

/* Curve colours, after Okabe and Ito: told apart without red-green vision too. */
static const uint32_t img__curve_color[8] = {
    0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0x444444, 0x8C6D1F };

/* One axis. Positions on it are values, or their log10. */
typedef struct img__axis {
    double low, high;              /* range of positions                                          */
    int    log;
    int    ticks;
    double tick[IMG__TICKS];       /* positions                                                   */
    char   label[IMG__TICKS][24];
    size_t widest;                 /* letters of the longest label                                */
} img__axis;

typedef struct img__chart {
    img_image *out;
    uint8_t   *coverage;           /* [h][w] of out: 0..255, how much a curve covers each pixel   */
    size_t     x, y, w, h;         /* the axes' rectangle in pixels                               */
    img__axis  x_axis, y_axis;
} img__chart;

IMG_API img_plot_config img_plot_config_default(void)
{
    img_plot_config config;
    memset(&config, 0, sizeof config);
    config.w = 800;
    config.h = 480;
    return config;
}

/* Where a value lies on an axis; NaN when nowhere. */
static double img__axis_position(const img__axis *axis, double value)
{
    if (axis->log)
        value = value > 0 ? log10(value) : NAN;
    return isfinite(value) ? value : NAN;
}

static void img__widen(img__axis *axis, double position)
{
    if (position < axis->low)
        axis->low = position;
    if (position > axis->high)
        axis->high = position;
}

/* The steps between ticks: 1, 2 or 5 times a power of ten, for at most this many ticks. */
static double img__tick_step(double range, double most)
{
    double power = pow(10, floor(log10(range / most)));
    double steps = range / most / power;
    return (steps <= 1 ? 1 : steps <= 2 ? 2 : steps <= 5 ? 5 : 10) * power;
}

static void img__add_tick(img__axis *axis, double position, const char *format, int decimals,
                          double value)
{
    char *label = axis->label[axis->ticks];
    double slack = 1e-9 * (axis->high - axis->low);
    if (axis->ticks == IMG__TICKS || position < axis->low - slack || position > axis->high + slack)
        return;
    snprintf(label, sizeof axis->label[0], format, decimals, value);
    if (strlen(label) > axis->widest)
        axis->widest = strlen(label);
    axis->tick[axis->ticks++] = position;
}

/* Places and labels about `most` ticks. */
static void img__place_ticks(img__axis *axis, double most)
{
    double decades = axis->high - axis->low, low = axis->low, high = axis->high, step, first;
    int i, k;
    most = most < 2 ? 2 : most > IMG__TICKS / 2 ? IMG__TICKS / 2 : most;
    if (axis->log && decades > 1) {
        /* Logarithmic: powers of ten, every few where they are many, or 1, 2 and 5 times them. */
        static const int factor[3] = { 1, 2, 5 };
        step = ceil(decades / most);
        for (i = 0; i <= decades / step + 1; i++)
            for (k = 0; k < (decades <= most / 2 ? 3 : 1); k++) {
                double value = factor[k] * pow(10, (floor(low / step) + i) * step);
                img__add_tick(axis, log10(value), "%.*g", 3, value);
            }
        return;
    }
    /* Even steps, on a short logarithmic axis too. As many decimals as the step has. */
    if (axis->log) {
        low = pow(10, low);
        high = pow(10, high);
    }
    step = img__tick_step(high - low, most);
    first = ceil(low / step - 1e-9);
    for (i = 0; i < IMG__TICKS; i++) {
        double value = (first + i) * step, largest = fmax(fabs(low), fabs(high));
        int decimals = step < 1 ? (int)ceil(-log10(step) - 1e-9) : 0;
        int is_long = decimals > 6 || largest >= 1e7;
        img__add_tick(axis, axis->log ? log10(value) : value, is_long ? "%.*g" : "%.*f",
                      is_long ? 4 : decimals, value);
    }
}

static double img__pixel_x(const img__chart *c, double position)
{
    const img__axis *axis = &c->x_axis;
    return (double)c->x + (double)c->w * (position - axis->low) / (axis->high - axis->low);
}

static double img__pixel_y(const img__chart *c, double position)
{
    const img__axis *axis = &c->y_axis;
    return (double)c->y + (double)c->h * (axis->high - position) / (axis->high - axis->low);
}

/* Adds the line from (x0, y0) to (x1, y1), in pixels, to the coverage. */
static void img__cover_line(img__chart *c, double x0, double y0, double x1, double y1, double width)
{
    double dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy, reach = width / 2 + 1, x, y;
    double left = fmax(floor(fmin(x0, x1) - reach), 0), right = ceil(fmax(x0, x1) + reach);
    double top = fmax(floor(fmin(y0, y1) - reach), 0), bottom = ceil(fmax(y0, y1) + reach);
    for (y = top; y <= bottom && y < (double)c->out->h; y++)
        for (x = left; x <= right && x < (double)c->out->w; x++) {
            /* From the pixel's centre to the nearest point of the segment. */
            double px = x + 0.5 - x0, py = y + 0.5 - y0;
            double along = length2 > 0 ? fmin(fmax((px * dx + py * dy) / length2, 0), 1) : 0;
            double distance = sqrt(pow(px - along * dx, 2) + pow(py - along * dy, 2));
            double part = fmin(fmax(width / 2 + 0.5 - distance, 0), 1);
            uint8_t *p = c->coverage + (size_t)y * c->out->w + (size_t)x;
            int value = (int)(part * 255 + 0.5);
            if (value > *p)
                *p = (uint8_t)value;
        }
}

/* Draws y values [n] over xs [n] (NULL: 0, 1, ...) with this opacity. Lone points become dots. */
static void img__draw_curve(img__chart *c, const float *xs, const double *ys, size_t n,
                            double width, double opacity, uint32_t color)
{
    size_t i, pixels = c->out->w * c->out->h;
    double last_x = 0, last_y = 0;
    int k, connected = 0, lone = 0;
    memset(c->coverage, 0, pixels);
    for (i = 0; i <= n; i++) {
        double x = i < n ? img__axis_position(&c->x_axis, xs ? (double)xs[i] : (double)i) : NAN;
        double y = i < n ? img__axis_position(&c->y_axis, ys[i]) : NAN;
        if (isnan(x) || isnan(y)) {                  /* a gap: did just one point precede it?     */
            if (lone)
                img__cover_line(c, last_x, last_y, last_x, last_y, width + 3);
            connected = lone = 0;
            continue;
        }
        x = img__pixel_x(c, x);
        y = img__pixel_y(c, y);
        if (connected)
            img__cover_line(c, last_x, last_y, x, y, width);
        lone = !connected;
        connected = 1;
        last_x = x;
        last_y = y;
    }
    for (i = 0; i < pixels; i++)
        for (k = 0; k < 3 && c->coverage[i]; k++) {
            uint8_t *p = c->out->rgb + 3 * i + k;
            double ink = color >> (16 - 8 * k) & 255;
            *p = (uint8_t)(*p + (ink - *p) * opacity * c->coverage[i] / 255 + 0.5);
        }
}

/* The mean over the finite ones of up to `window` values around each of y [n]; NaN stays NaN.
   sum and count are work space [n + 1]. */
static void img__moving_average(const float *y, size_t n, size_t window, double *sum, size_t *count,
                                double *mean)
{
    size_t i;
    sum[0] = 0;
    count[0] = 0;
    for (i = 0; i < n; i++) {
        sum[i + 1] = sum[i] + (isfinite(y[i]) ? (double)y[i] : 0);
        count[i + 1] = count[i] + (isfinite(y[i]) ? 1 : 0);
    }
    for (i = 0; i < n; i++) {
        size_t begin = i > window / 2 ? i - window / 2 : 0;
        size_t end = n - i > window / 2 ? i + window / 2 + 1 : n;
        mean[i] = NAN;
        if (isfinite(y[i]))
            mean[i] = (sum[end] - sum[begin]) / (double)(count[end] - count[begin]);
    }
}

/* Legend entries side by side from (x0, y0), w pixels wide; returns the number of lines. */
static size_t img__draw_legend(img_image *out, const img_curve *curves, size_t count, size_t x0,
                               size_t y0, size_t w)
{
    size_t i, x = 0, lines = 0;
    for (i = 0; i < count; i++) {
        const char *label = curves[i].label;
        size_t bytes = label ? strlen(label) : 0, y;
        size_t entry_w = 36 + img__count_letters(label, bytes) * IMG__LETTER_W;
        if (!label)
            continue;
        if (lines == 0 || x + entry_w > w) {
            x = 0;
            lines++;
        }
        y = y0 + (lines - 1) * (IMG__LINE_H + 3);
        img__fill(out, img__curve_color[i % 8], x0 + x, y + 2, 14, 3);
        img__draw_text(out, IMG__INK, 1, x0 + x + 18, y, label, bytes);
        x += entry_w;
    }
    return lines;
}

/* Draws grid lines, tick marks and numbers. */
static void img__draw_axes(const img__chart *c)
{
    int i;
    for (i = 0; i < c->y_axis.ticks; i++) {
        const char *label = c->y_axis.label[i];
        size_t y = (size_t)img__pixel_y(c, c->y_axis.tick[i]), n = strlen(label);
        img__fill(c->out, IMG__PALE, c->x, y, c->w, 1);
        img__draw_text(c->out, IMG__GREY, 1, c->x - 6 - n * IMG__LETTER_W, y - 3, label, n);
    }
    for (i = 0; i < c->x_axis.ticks; i++) {
        const char *label = c->x_axis.label[i];
        size_t x = (size_t)img__pixel_x(c, c->x_axis.tick[i]), n = strlen(label);
        size_t left = n * IMG__LETTER_W / 2 < x ? x - n * IMG__LETTER_W / 2 : 0;
        img__fill(c->out, IMG__PALE, x, c->y, 1, c->h);
        img__fill(c->out, IMG__GREY, x, c->y + c->h, 1, 5);
        img__draw_text(c->out, IMG__GREY, 1, left, c->y + c->h + 8, label, n);
    }
    img__fill(c->out, IMG__GREY, c->x, c->y + c->h, c->w + 1, 1);
    img__fill(c->out, IMG__GREY, c->x, c->y, 1, c->h);
}

/* Sets both axes' ranges from all points that are drawn. */
static void img__fit_axes(img__axis *x_axis, img__axis *y_axis, const img_curve *curves,
                          size_t count)
{
    size_t i, k;
    double pad;
    x_axis->low = y_axis->low = INFINITY;
    x_axis->high = y_axis->high = -INFINITY;
    for (i = 0; i < count; i++)
        for (k = 0; k < curves[i].n; k++) {
            const img_curve *c = &curves[i];
            double x = img__axis_position(x_axis, c->x ? (double)c->x[k] : (double)k);
            double y = img__axis_position(y_axis, (double)c->y[k]);
            if (isnan(x) || isnan(y))
                continue;
            img__widen(x_axis, x);
            img__widen(y_axis, y);
        }
    if (x_axis->low > x_axis->high) {                /* no points at all                          */
        x_axis->low = y_axis->low = 0;
        x_axis->high = y_axis->high = 1;
    }
    /* A single value still needs a range around it; curves should not touch top and bottom. */
    if (x_axis->high - x_axis->low < 1e-9 * fabs(x_axis->high) + 1e-30) {
        x_axis->low -= 0.5 + fabs(x_axis->low) / 2;
        x_axis->high += 0.5 + fabs(x_axis->high) / 2;
    }
    pad = 0.05 * (y_axis->high - y_axis->low);
    if (y_axis->high - y_axis->low < 1e-9 * fabs(y_axis->high) + 1e-30)
        pad = y_axis->high < 0 || y_axis->high > 0 ? fabs(y_axis->high) / 2 : 0.5;
    y_axis->low -= pad;
    y_axis->high += pad;
}

/* Draws all curves, then their averages above them. */
static void img__draw_curves(img__job *job, img__chart *c, const img_curve *curves, size_t count,
                             size_t smooth)
{
    size_t most = 0, i, k;
    double *values, *sum;
    size_t *finite;
    for (i = 0; i < count; i++)
        if (curves[i].n > most)
            most = curves[i].n;
    values = (double *)img__alloc(job, most, sizeof *values);
    sum = (double *)img__alloc(job, most + 1, sizeof *sum);
    finite = (size_t *)img__alloc(job, most + 1, sizeof *finite);
    c->coverage = (uint8_t *)img__alloc(job, c->out->w, c->out->h);
    for (i = 0; i < count && job->result == IMG_OK; i++) {
        for (k = 0; k < curves[i].n; k++)
            values[k] = (double)curves[i].y[k];
        img__draw_curve(c, curves[i].x, values, curves[i].n, smooth > 1 ? 1 : 1.6,
                        smooth > 1 ? 0.3 : 1, img__curve_color[i % 8]);
    }
    for (i = 0; i < count && smooth > 1 && job->result == IMG_OK; i++) {
        img__moving_average(curves[i].y, curves[i].n, smooth, sum, finite, values);
        img__draw_curve(c, curves[i].x, values, curves[i].n, 2, 1, img__curve_color[i % 8]);
    }
    IMG_FREE(c->coverage);
    IMG_FREE(values);
    IMG_FREE(sum);
    IMG_FREE(finite);
}

/* Divides the paper and draws everything, from the top: title, legend, y label, axes, x label. */
static int img__draw_chart(img__job *job, img__chart *c, const img_curve *curves, size_t count,
                           const img_plot_config *config)
{
    size_t w = c->out->w, h = c->out->h, y = 12, lines;
    size_t letters = (w - 24) / IMG__LETTER_W, below = config->x_label ? 46 : 30;
    lines = img__draw_wrapped(c->out, IMG__INK, 2, 12, y, letters / 2, config->title);
    y += lines ? lines * 2 * IMG__LINE_H + 6 : 0;
    lines = img__draw_legend(c->out, curves, count, 12, y, w - 24);
    y += lines ? lines * (IMG__LINE_H + 3) + 4 : 0;
    lines = img__draw_wrapped(c->out, IMG__GREY, 1, 12, y, letters, config->y_label);
    c->y = y + lines * IMG__LINE_H + 6;
    c->h = h > c->y + below + 30 ? h - c->y - below : 0;
    img__place_ticks(&c->y_axis, (double)c->h / 45);
    c->x = 18 + c->y_axis.widest * IMG__LETTER_W;    /* as far right as the widest number needs   */
    c->w = w > c->x + 60 ? w - c->x - 24 : 0;
    img__place_ticks(&c->x_axis, (double)c->w / 90);
    if (c->w == 0 || c->h == 0)
        return img__fail(job, IMG_ERROR_ARGUMENT, "the labels leave no room for the curves");
    img__draw_axes(c);
    if (config->x_label) {
        size_t bytes = strlen(config->x_label);
        size_t label_w = img__count_letters(config->x_label, bytes) * IMG__LETTER_W;
        size_t x = label_w < c->w ? c->x + (c->w - label_w) / 2 : c->x;
        img__draw_text(c->out, IMG__GREY, 1, x, h - 18, config->x_label, bytes);
    }
    img__draw_curves(job, c, curves, count, config->smooth);
    return job->result == IMG_OK;
}

IMG_API img_result img_plot(const img_curve *curves, size_t count, const img_plot_config *config,
                            img_image *out, char *err, size_t errsize)
{
    img__job job = img__begin("img_plot", err, errsize);
    img_plot_config c = config ? *config : img_plot_config_default();
    img__chart chart;
    size_t i;
    memset(out, 0, sizeof *out);
    if (!curves && count > 0)
        img__fail(&job, IMG_ERROR_ARGUMENT, "no curves were given");
    for (i = 0; i < count && curves; i++)
        if (!curves[i].y && curves[i].n > 0)
            img__fail(&job, IMG_ERROR_ARGUMENT, "curve %lu has no y values", (unsigned long)i);
    if (c.w < 240 || c.h < 160)
        img__fail(&job, IMG_ERROR_ARGUMENT, "%lu x %lu pixels are too few for a plot",
                  (unsigned long)c.w, (unsigned long)c.h);
    if (job.result != IMG_OK || !img__new_paper(&job, c.w, c.h, out))
        return job.result;
    memset(&chart, 0, sizeof chart);
    chart.out = out;
    chart.y_axis.log = c.log_y;
    img__fit_axes(&chart.x_axis, &chart.y_axis, curves, count);
    if (!img__draw_chart(&job, &chart, curves, count, &c))
        img_free(out);
    return job.result;
}

#endif /* IMAGES_IMPLEMENTATION */
