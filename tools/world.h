/* world.h - a procedural world that renders captioned pictures.

   The stand-in for web-scale data on which the shipped cascade is pre-trained: 16 classes of
   animals and things, nine colours, 14 places, four views, accessories, poses, expressions,
   styles, painted letters and hybrids, drawn by a signed-distance ray marcher at any resolution
   and described in varied English. Subjects are members of a class whose appearance words do not
   reach.

   Do this:

       #define WORLD_IMPLEMENTATION       // in one file, before any other include
       #include "world.h"

       world_scene scene;
       char caption[WORLD_CAPTION_MAX];
       static unsigned char rgb[64 * 64 * 3];
       world_sample(world_seed(WORLD_PRETRAIN, 7), &scene);       // what is in the picture
       world_caption(&scene, 1, caption, sizeof caption);         // one of its many wordings
       world_render(&scene, 64, 0, 0, 64, 64, 4, rgb, NULL);      // the picture

   How it works (tags lead to the code)
     [W-1] numbers     vectors, hash random numbers, smooth noise
     [W-2] names       classes, colours, places, views, ..., the reserved rare words
     [W-3] sampling    seed -> scene
     [W-4] captions    scene -> words
     [W-5] text        seed -> sentence, for pre-training a text encoder on text alone
     [W-6] shapes      parts (ellipsoid, limb, box, lathe, torus) and their signed distances
     [W-7] classes     scene -> model, a list of parts
     [W-8] places      ground and backdrop as functions of a ray
     [W-9] rendering   rays, light, shadow, styles, antialiasing
     [W-10] subjects   the 36 individuals and their photos
     [W-11] pools      files of pre-rendered pictures

   Conventions
   - Object space: x points out of the object's face, y up, z to its left; the ground is y = 0 and
     an object is about 1 high. Backdrops are laid out relative to the camera, not to the object.
   - Colours in structs are sRGB in [0,1]; light is added up in an approximately linear space.
   - Every detail is a function of the ray and of its footprint, never of the picture's size: the
     picture at 64 px is the antialiased downsample of the one at 256 px, to within the noise of
     sampling. Texture finer than a pixel fades to its mean.
   - All functions are deterministic and thread-safe. Random numbers are hashes of (seed, purpose,
     index), so results agree between compilers to within rounding.
   - Plain C99, also valid C++17; libc and libm. With OpenMP, world_pool_write uses threads.     */

#ifndef WORLD_H
#define WORLD_H

#if defined(WORLD_IMPLEMENTATION) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* mmap, fileno, fsync, fseeko under strict C99 */
#endif
#if defined(WORLD_IMPLEMENTATION) && !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WORLD_CAPTION_MAX 256 /* enough for every caption and sentence, with its final zero */

/* ---- Names -------------------------------------------------------------------------------- */

/* In the order of their frequency: world_class_frequency. */
enum {
    WORLD_DOG, WORLD_CAT, WORLD_CAR, WORLD_DUCK, WORLD_MUG, WORLD_TEAPOT, WORLD_RABBIT,
    WORLD_ROBOT, WORLD_BOOT, WORLD_BACKPACK, WORLD_BEAR, WORLD_VASE, WORLD_CLOCK, WORLD_TURTLE,
    WORLD_CANDLE, WORLD_OWL, WORLD_CLASSES
};
enum {
    WORLD_RED, WORLD_ORANGE, WORLD_YELLOW, WORLD_GREEN, WORLD_BLUE, WORLD_PURPLE, WORLD_BROWN,
    WORLD_WHITE, WORLD_BLACK, WORLD_COLORS
};
enum { WORLD_PLAIN, WORLD_STRIPED, WORLD_SPOTTED, WORLD_PATTERNS };
enum {
    WORLD_BEACH, WORLD_SNOW, WORLD_GRASS, WORLD_DESERT, WORLD_NIGHT, WORLD_TABLE, WORLD_FOREST,
    WORLD_COBBLES, WORLD_MOON, WORLD_UNDER_WATER, WORLD_KITCHEN, WORLD_CARPET, WORLD_POOL,
    WORLD_FABRIC, WORLD_PLACES
};
enum { WORLD_FRONT, WORLD_SIDE, WORLD_BACK, WORLD_ABOVE, WORLD_VIEWS };
enum {
    WORLD_NO_ACCESSORY, WORLD_HAT, WORLD_SCARF, WORLD_SUNGLASSES, WORLD_CROWN, WORLD_BOW,
    WORLD_ACCESSORIES
};
enum { WORLD_STANDING, WORLD_SITTING, WORLD_SLEEPING, WORLD_JUMPING, WORLD_POSES };
enum { WORLD_NEUTRAL, WORLD_SMILING, WORLD_SURPRISED, WORLD_ANGRY, WORLD_EXPRESSIONS };
enum {
    WORLD_PHOTO, WORLD_PENCIL, WORLD_PIXEL_ART, WORLD_POSTER, WORLD_WATERCOLOUR, WORLD_STYLES
};
#define WORLD_GLYPHS 36 /* a-z, then 0-9 */
#define WORLD_OWNERS 28

/* The word for each value, as captions have it; NULL for a value out of range. A place's name is
   its whole phrase ("on the beach"), a style's ("a pencil sketch of"); that of WORLD_PLAIN,
   WORLD_NO_ACCESSORY, WORLD_NEUTRAL and WORLD_PHOTO is the empty string. */
const char *world_class_name(int i);
float world_class_frequency(int i); /* of the first class's, which is 1: (i + 1)^-0.7 */
const char *world_color_name(int i);
const char *world_pattern_name(int i);
const char *world_place_name(int i);
const char *world_view_name(int i);
const char *world_accessory_name(int i);
const char *world_pose_name(int i);
const char *world_expression_name(int i);
const char *world_style_name(int i);

int world_is_animal(int object); /* has poses and expressions                          */
int world_has_head(int object);  /* can give its head to a hybrid                      */
int world_has_label(int object); /* can have a letter or digit painted on it           */

/* Reserved words without meaning: the first world_n_rare_shown of them are scattered through
   8 % of the captions that are not empty, with Zipf frequencies; the rest never appear. */
enum { world_n_rare = 100, world_n_rare_shown = 80 };
extern const char *const world_rare[world_n_rare];

/* Expected fraction of non-empty captions that contain world_rare[i]; 0 if i is out of range. */
double world_rare_frequency(int i);

/* ---- Scenes ------------------------------------------------------------------------------- */

/* Disjoint sets of scenes. Seeds are (split << 40) + index with index < 2^40; the subjects'
   photos draw from the last two, so nothing of a subject is ever in a pre-training pool. */
typedef enum world_split {
    WORLD_PRETRAIN, WORLD_METRIC, WORLD_VALIDATION, WORLD_DEV_SUBJECT, WORLD_TEST_SUBJECT,
    WORLD_SPLITS
} world_split;
uint64_t world_seed(world_split split, uint64_t index);

/* What a subject's mark covers. */
enum { WORLD_MARK_PATCH, WORLD_MARK_BAND, WORLD_MARK_WHOLE, WORLD_MARK_TIP };
/* Where on the object. Left is +z. */
enum {
    WORLD_AT_BODY, WORLD_AT_HEAD, WORLD_AT_LEFT, WORLD_AT_RIGHT, WORLD_AT_TAIL, WORLD_AT_LEG,
    WORLD_AT_TRIM, WORLD_AT_NOWHERE
};
typedef struct world_mark {
    int8_t kind, region, pad[2];
    float center[3]; /* in units of the region's radius, from its centre */
    float radius;    /* likewise */
    float rgb[3];
} world_mark;
#define WORLD_MARKS 5

/* A picture before it is drawn: plain old data, stored as is in pool files. */
typedef struct world_scene {
    uint64_t seed;
    int8_t object;          /* class; of a hybrid, the class whose body it has              */
    int8_t head;            /* class whose head a hybrid has; -1 if not a hybrid            */
    int8_t color;           /* palette index of rgb[0]; -1 if off the palette (subjects)    */
    int8_t second;          /* of rgb[1]: pattern, muzzle, rims                             */
    int8_t third;           /* of rgb[2]: ears, lids, trims                                 */
    int8_t pattern, place, view;
    int8_t accessory, accessory_color; /* the colour of a hat, scarf or bow; of rgb[3]      */
    int8_t pose, expression; /* animals only                                                */
    int8_t style;
    int8_t glyph;           /* painted letter 0..35; -1 if none                             */
    int8_t subject;         /* index over all subjects; -1 if none                          */
    int8_t texture;         /* of subjects: fine texture invisible at 64 px; 0 if none      */
    int8_t n_marks;
    int8_t owner;           /* 1...: whose it is, and so which individual; 0: nobody's      */
    int8_t pad[2];
    float shape[8];         /* in [0,1], meaning depends on the class                       */
    float rgb[4][3];        /* sRGB: main, second, third, accessory                         */
    float pattern_period, pattern_phase; /* in object units; fraction of a period           */
    float head_yaw;         /* radians, to the object's left                                */
    float yaw, pitch;       /* camera's direction from the object, radians; 0 = front, level */
    float distance;         /* from the camera to the object's middle                       */
    float fill;             /* object's height as a fraction of the picture's               */
    float shift[2];         /* of the object in the free space right/up, in [-1,1]          */
    float light_azimuth, light_elevation; /* relative to the camera, radians                */
    float backdrop[4];      /* in [0,1]: variation of the place                             */
    world_mark marks[WORLD_MARKS];
} world_scene;

/* Draws a scene of the pre-training distribution. */
void world_sample(uint64_t seed, world_scene *scene);

/* Changes the view of a scene, drawing the camera anew from seed. view is WORLD_FRONT... */
void world_set_view(world_scene *scene, int view, uint64_t seed);

/* Gives the object colours and one to three marks of its own, drawn from seed, as subjects have
   them. No caption names them. */
void world_make_individual(world_scene *scene, uint64_t seed);

/* Makes it the one of its class that belongs to somebody, owner = 1 ... WORLD_OWNERS: it has the
   same build, colours and marks in every scene, and captions say whose it is, "a dog of the
   baker". So a word can mean an individual before any fine-tuning, as names do in large sets. */
void world_make_owned(world_scene *scene, int owner);

/* Changes one of the palette colours (which = 0 main, 1 second, 2 third, 3 accessory). */
void world_set_color(world_scene *scene, int which, int color);

/* Writes one random wording of the scene's caption into buf (size bytes, always terminated), in
   lower case: 10 % are empty; of the others 12 % are bare ("a dog"), 8 % carry a rare word. */
void world_caption(const world_scene *scene, uint64_t seed, char *buf, size_t size);

/* The same without dropping: never empty. */
void world_caption_kept(const world_scene *scene, uint64_t seed, char *buf, size_t size);

/* Whether a caption is bare: "a dog", with or without a rare word. */
int world_caption_is_bare(const char *caption);

/* Index into world_rare of the rare word in a caption; -1 if it has none. */
int world_caption_rare(const char *caption);

/* Writes one sentence: a caption or a sentence of everyday words, for training on text alone. */
void world_text(uint64_t seed, char *buf, size_t size);

/* Draws the window [x0,x0+w) x [y0,y0+h), origin at the top left, of a virtual picture of
   size x size pixels. Where neighbouring samples differ, a pixel takes samples x samples of them.
   rgb is [h][w][3]. aux is NULL or [h][w][4]: the object's coverage, then its normal's
   components to the right, up and towards the viewer as (n+1)/2*255, 127 outside the object. */
void world_render(const world_scene *scene, int size, int x0, int y0, int w, int h, int samples,
                  unsigned char *rgb, unsigned char *aux);

/* ---- Subjects ----------------------------------------------------------------------------- */

enum { world_n_dev = 6, world_n_test = 30, world_n_subjects = 36, world_max_photos = 6 };

typedef struct world_subject_info {
    const char *name;  /* such as "dog1"; also the name of its folder                        */
    const char *class_name; /* such as "dog"                                                 */
    int object;        /* class                                                              */
    int is_dev;        /* learning rates and steps are chosen on these only                  */
    int n_photos;      /* 4 or 5                                                             */
    int places[2];     /* where the photos were taken; the two may be the same               */
} world_subject_info;

/* Subjects 0..5 are for development, 6..35 for testing. Out of range: name "", n_photos 0. */
world_subject_info world_subject(int i);

/* The scene of photo k of subject i, k < n_photos. */
void world_subject_photo(int i, int k, world_scene *scene);

/* The scene of the subject at a given place, in a given view; seed varies camera, light and, of
   animals, the pose (standing or sitting). A photo without accessory or expression: set what else
   is wanted in the scene. No small seed repeats one of the photos above. */
void world_subject_view(int i, int place, int view, uint64_t seed, world_scene *scene);

/* ---- Pools -------------------------------------------------------------------------------- */

typedef struct world_pool_header {
    char magic[8];          /* "DBPOOL1"                                                     */
    uint32_t version;       /* 1                                                             */
    uint32_t size;          /* S, pixels on a side                                           */
    uint32_t virtual_size;  /* of the picture of which each one is a window; S for the whole */
    uint32_t scene_bytes;   /* sizeof(world_scene)                                           */
    uint64_t count;         /* N                                                             */
    uint64_t seed;          /* picture i shows world_sample(seed + i), perhaps an individual */
    uint64_t rgb_offset;    /* [N][S][S][3] u8, from the beginning of the file               */
    uint64_t aux_offset;    /* [N][S/2][S/2][4] u8                                           */
    uint64_t scene_offset;  /* [N] world_scene                                               */
    uint64_t file_bytes;
} world_pool_header;        /* padded with zeros to 4096 bytes                               */

/* A pool mapped into memory: read only, until world_pool_close. */
typedef struct world_pool {
    const world_pool_header *header;
    const unsigned char *rgb;
    const unsigned char *aux;
    const world_scene *scenes;
    void *map;
    size_t map_bytes;
} world_pool;

typedef struct world_pool_config {
    int size;               /* even                                                          */
    int virtual_size;       /* >= size                                                       */
    int samples;            /* as in world_render                                            */
    int threads;
    int individuals;        /* so many of 100 are made individuals,                          */
    int owned;              /* so many of them owned ones; at most `individuals`             */
    uint64_t count;
    uint64_t seed;
    void (*progress)(uint64_t done, uint64_t count, void *user); /* or NULL                  */
    void *user;
} world_pool_config;

/* 1000 whole pictures of 64 px, no individuals, seed world_seed(WORLD_PRETRAIN, 0), 2 threads. */
world_pool_config world_pool_config_default(void);

/* Renders a pool into path.tmp and renames it to path. Returns 0, or -1 with the reason in
   error. */
int world_pool_write(const char *path, const world_pool_config *config, char *error,
                     size_t error_size);

/* Maps a pool. Returns 0, or -1 with the reason in error: a file that is truncated, of another
   version or inconsistent is refused. */
int world_pool_open(const char *path, world_pool *pool, char *error, size_t error_size);

/* Unmaps; does nothing for a zeroed struct. */
void world_pool_close(world_pool *pool);

/* The top left corner of picture i's window, when virtual_size > size. */
void world_pool_window(const world_pool_header *header, uint64_t i, int *x0, int *y0);

#ifdef __cplusplus
}
#endif
#endif /* WORLD_H */

#ifdef WORLD_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- [W-1] Numbers ------------------------------------------------------------------------ */

typedef struct w3 { float x, y, z; } w3;

static inline w3 w3_make(float x, float y, float z) { w3 v; v.x = x; v.y = y; v.z = z; return v; }
static inline w3 w3_add(w3 a, w3 b) { return w3_make(a.x + b.x, a.y + b.y, a.z + b.z); }
static inline w3 w3_sub(w3 a, w3 b) { return w3_make(a.x - b.x, a.y - b.y, a.z - b.z); }
static inline w3 w3_mul(w3 a, w3 b) { return w3_make(a.x * b.x, a.y * b.y, a.z * b.z); }
static inline w3 w3_scale(w3 a, float s) { return w3_make(a.x * s, a.y * s, a.z * s); }
static inline w3 w3_madd(w3 a, w3 b, float s) { return w3_add(a, w3_scale(b, s)); }
static inline float w3_dot(w3 a, w3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline float w3_length(w3 a) { return sqrtf(w3_dot(a, a)); }
static inline w3 w3_unit(w3 a) { return w3_scale(a, 1.0f / (w3_length(a) + 1e-12f)); }
static inline w3 w3_mix(w3 a, w3 b, float t) { return w3_madd(a, w3_sub(b, a), t); }
static inline w3 w3_cross(w3 a, w3 b)
{
    return w3_make(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

static inline float world__min(float a, float b) { return a < b ? a : b; }
static inline float world__max(float a, float b) { return a > b ? a : b; }
static inline float world__mix(float a, float b, float t) { return a + (b - a) * t; }
static inline float world__clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}
static inline float world__smoothstep(float a, float b, float x)
{
    float t = world__clamp((x - a) / (b - a), 0.0f, 1.0f);
    return t * t * (3.0f - 2.0f * t);
}
static inline int world__floor(float x)
{
    int i = (int)x;
    return i - (x < (float)i);
}
static inline float world__fract(float x) { return x - (float)world__floor(x); }

/* A good 64-bit hash (splitmix64's finalizer). */
static inline uint64_t world__hash(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A counter-based stream of random numbers, one per (seed, purpose). */
typedef struct world__rng { uint64_t key, counter; } world__rng;

static world__rng world__rng_make(uint64_t seed, uint64_t purpose)
{
    world__rng rng;
    rng.key = world__hash(seed + 0x9e3779b97f4a7c15u * (purpose + 1));
    rng.counter = 0;
    return rng;
}
static uint64_t world__bits(world__rng *rng)
{
    rng->counter++;
    return world__hash(rng->key + 0x9e3779b97f4a7c15u * rng->counter);
}
/* Uniform in [0,1). */
static float world__uniform(world__rng *rng)
{
    return (float)(world__bits(rng) >> 40) * (1.0f / 16777216.0f);
}
static float world__range(world__rng *rng, float low, float high)
{
    return low + (high - low) * world__uniform(rng);
}
static int world__below(world__rng *rng, int n) { return (int)(world__bits(rng) % (uint64_t)n); }
static int world__chance(world__rng *rng, float p) { return world__uniform(rng) < p; }

/* Index drawn with probability proportional to weight[0..n). */
static int world__choose(world__rng *rng, const float *weight, int n)
{
    float total = 0.0f;
    for (int i = 0; i < n; i++) total += weight[i];
    float left = world__uniform(rng) * total;
    for (int i = 0; i < n - 1; i++) {
        left -= weight[i];
        if (left < 0.0f) return i;
    }
    return n - 1;
}

/* Uniform in [0,1) at each point of the integer lattice. */
static inline float world__lattice(int x, int y, int z)
{
    uint32_t h = (uint32_t)x * 0x8da6b343u ^ (uint32_t)y * 0xd8163841u ^ (uint32_t)z * 0xcb1ab31fu;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    h ^= h >> 12;
    h *= 0x297a2d39u;
    return (float)((h ^ (h >> 15)) >> 8) * (1.0f / 16777216.0f);
}

/* Smooth noise in [0,1] with features of size 1; z selects one of many. */
static float world__noise(float x, float y, int z)
{
    int i = world__floor(x), j = world__floor(y);
    float u = x - (float)i, v = y - (float)j;
    u = u * u * (3.0f - 2.0f * u);
    v = v * v * (3.0f - 2.0f * v);
    float bottom = world__mix(world__lattice(i, j, z), world__lattice(i + 1, j, z), u);
    float top = world__mix(world__lattice(i, j + 1, z), world__lattice(i + 1, j + 1, z), u);
    return world__mix(bottom, top, v);
}

/* How much of a texture of this period is left under a pixel of this footprint: all when a period
   has more than 4.5 pixels, nothing when it has fewer than 2.4. */
static inline float world__fade(float footprint, float period)
{
    return world__clamp(2.1f - 5.0f * footprint / period, 0.0f, 1.0f);
}

/* ---- [W-2] Names -------------------------------------------------------------------------- */

static const char *const world__class_names[WORLD_CLASSES] = {
    "dog", "cat", "car", "duck", "mug", "teapot", "rabbit", "robot", "boot", "backpack", "bear",
    "vase", "clock", "turtle", "candle", "owl"};
static const char *const world__color_names[WORLD_COLORS] = {
    "red", "orange", "yellow", "green", "blue", "purple", "brown", "white", "black"};
static const char *const world__pattern_names[WORLD_PATTERNS] = {"", "striped", "spotted"};
static const char *const world__place_names[WORLD_PLACES] = {
    "on the beach", "in the snow", "on the grass", "in the desert", "in the city at night",
    "on a wooden table", "in the forest", "on a cobblestone street", "on the moon", "under water",
    "in a kitchen", "on a red carpet", "in a swimming pool", "on pink fabric"};
static const char *const world__view_names[WORLD_VIEWS] = {"front", "side", "back", "above"};
static const char *const world__accessory_names[WORLD_ACCESSORIES] = {
    "", "hat", "scarf", "sunglasses", "crown", "bow"};
static const char *const world__pose_names[WORLD_POSES] = {
    "standing", "sitting", "sleeping", "jumping"};
static const char *const world__expression_names[WORLD_EXPRESSIONS] = {
    "", "smiling", "surprised", "angry"};
static const char *const world__style_names[WORLD_STYLES] = {
    "", "a pencil sketch of", "pixel art of", "a poster of", "a watercolour of"};

static const char *world__name(const char *const *names, int n, int i)
{
    return i >= 0 && i < n ? names[i] : NULL;
}
const char *world_class_name(int i) { return world__name(world__class_names, WORLD_CLASSES, i); }
float world_class_frequency(int i) { return powf((float)(i + 1), -0.7f); }
const char *world_color_name(int i) { return world__name(world__color_names, WORLD_COLORS, i); }
const char *world_place_name(int i) { return world__name(world__place_names, WORLD_PLACES, i); }
const char *world_view_name(int i) { return world__name(world__view_names, WORLD_VIEWS, i); }
const char *world_pose_name(int i) { return world__name(world__pose_names, WORLD_POSES, i); }
const char *world_style_name(int i) { return world__name(world__style_names, WORLD_STYLES, i); }
const char *world_pattern_name(int i)
{
    return world__name(world__pattern_names, WORLD_PATTERNS, i);
}
const char *world_accessory_name(int i)
{
    return world__name(world__accessory_names, WORLD_ACCESSORIES, i);
}
const char *world_expression_name(int i)
{
    return world__name(world__expression_names, WORLD_EXPRESSIONS, i);
}

int world_is_animal(int object)
{
    return object == WORLD_DOG || object == WORLD_CAT || object == WORLD_DUCK
        || object == WORLD_RABBIT || object == WORLD_BEAR || object == WORLD_TURTLE
        || object == WORLD_OWL;
}

int world_has_head(int object)
{
    return object == WORLD_ROBOT || (world_is_animal(object) && object != WORLD_TURTLE);
}

int world_has_label(int object)
{
    return object == WORLD_CAR || object == WORLD_MUG || object == WORLD_TEAPOT
        || object == WORLD_BOOT || object == WORLD_BACKPACK || object == WORLD_VASE
        || object == WORLD_CANDLE;
}

/* The view in which a label is seen best. */
static int world__label_view(int object, int drawn)
{
    int front_is_free = object == WORLD_CAR || object == WORLD_MUG || object == WORLD_BACKPACK;
    return front_is_free && drawn != WORLD_SIDE ? WORLD_FRONT : WORLD_SIDE;
}

const char *const world_rare[world_n_rare] = {
    /* 80 that appear, from frequent to rare */
    "zxk", "qv", "vk7", "xjq", "bzq", "kq3", "wvx", "jx", "tzv", "q9f",
    "hxk", "vq", "zj4", "pxq", "gvz", "xw", "kzj", "f8x", "qjh", "rzx",
    "vxb", "zq", "j5k", "wqz", "xhv", "kvd", "qz2", "dxj", "jvq", "zf",
    "mqx", "x3v", "gqk", "vzt", "kx", "pzj", "qw6", "xzg", "jkv", "hq",
    "zvp", "b4z", "qxd", "vjw", "fxq", "zk", "k6q", "wzj", "xqt", "vg",
    "jzh", "q2x", "cvk", "zxw", "kqb", "jq", "v9z", "xkf", "qzm", "gx",
    "zjq", "t7x", "vqk", "xbj", "qk", "z8v", "wkx", "jvz", "pqz", "fv",
    "x5j", "kzq", "qvg", "zhx", "vj", "n4q", "xvz", "jqk", "zbw", "kj",
    /* 20 that never appear in any caption */
    "qhx", "vzk", "x7q", "zqj", "wx", "kvj", "jz3", "xqv", "bqx", "zw",
    "vkq", "q4z", "hzv", "jxk", "zg", "k9x", "xjz", "qvw", "fzk", "vx"};

static float world__rare_weight(int i) { return 1.0f / (float)(i + 1); }
#define WORLD__RARE_CAPTIONS 0.08f /* fraction of non-empty captions with a rare word */

double world_rare_frequency(int i)
{
    double total = 0.0;
    if (i < 0 || i >= world_n_rare_shown) return 0.0;
    for (int j = 0; j < world_n_rare_shown; j++) total += (double)world__rare_weight(j);
    return (double)WORLD__RARE_CAPTIONS * (double)world__rare_weight(i) / total;
}

static const float world__palette[WORLD_COLORS][3] = {
    {0.86f, 0.16f, 0.13f}, /* red    */
    {0.98f, 0.52f, 0.08f}, /* orange */
    {0.98f, 0.83f, 0.15f}, /* yellow */
    {0.22f, 0.66f, 0.24f}, /* green  */
    {0.16f, 0.40f, 0.88f}, /* blue   */
    {0.55f, 0.24f, 0.74f}, /* purple */
    {0.50f, 0.31f, 0.17f}, /* brown  */
    {0.95f, 0.94f, 0.91f}, /* white  */
    {0.15f, 0.15f, 0.17f}, /* black  */
};

/* ---- [W-3] Sampling ----------------------------------------------------------------------- */

/* What each stream of random numbers is for. */
enum {
    WORLD__FOR_SCENE, WORLD__FOR_VIEW, WORLD__FOR_CAPTION, WORLD__FOR_TEXT, WORLD__FOR_WINDOW,
    WORLD__FOR_COLOR, WORLD__FOR_SUBJECT, WORLD__FOR_INDIVIDUAL
};

uint64_t world_seed(world_split split, uint64_t index)
{
    return ((uint64_t)split << 40) + (index & (((uint64_t)1 << 40) - 1));
}

/* Hybrids that no picture shows: {head, body}. They are left to be composed. */
static const int8_t world__hidden_hybrids[][2] = {
    {WORLD_DOG, WORLD_DUCK}, {WORLD_CAT, WORLD_TURTLE}, {WORLD_RABBIT, WORLD_CAR},
    {WORLD_DUCK, WORLD_BEAR}, {WORLD_BEAR, WORLD_TEAPOT}, {WORLD_OWL, WORLD_CAT},
    {WORLD_DOG, WORLD_MUG}, {WORLD_ROBOT, WORLD_BOOT}};

static int world__hybrid_is_hidden(int head, int body)
{
    int n = (int)(sizeof world__hidden_hybrids / sizeof world__hidden_hybrids[0]);
    for (int i = 0; i < n; i++)
        if (world__hidden_hybrids[i][0] == head && world__hidden_hybrids[i][1] == body) return 1;
    return 0;
}

void world_set_color(world_scene *scene, int which, int color)
{
    world__rng rng = world__rng_make(scene->seed + (uint64_t)which, WORLD__FOR_COLOR);
    float brighter = world__range(&rng, -0.04f, 0.04f);
    for (int c = 0; c < 3; c++) {
        float value = world__palette[color][c] + brighter + world__range(&rng, -0.03f, 0.03f);
        scene->rgb[which][c] = world__clamp(value, 0.0f, 1.0f);
    }
    if (which == 0) scene->color = (int8_t)color;
    if (which == 1) scene->second = (int8_t)color;
    if (which == 2) scene->third = (int8_t)color;
    if (which == 3) scene->accessory_color = (int8_t)color;
}

void world_set_view(world_scene *scene, int view, uint64_t seed)
{
    static const float yaw[WORLD_VIEWS] = {0.0f, 1.5708f, 3.1416f, 0.0f};
    world__rng rng = world__rng_make(seed, WORLD__FOR_VIEW);
    float side = world__chance(&rng, 0.5f) ? 1.0f : -1.0f;
    float jitter = world__range(&rng, 0.05f, 0.50f);
    if (scene->object == WORLD_MUG) side = 1.0f; /* where its handle is seen */
    scene->view = (int8_t)view;
    scene->yaw = side * (yaw[view] + (view == WORLD_BACK ? -jitter : jitter));
    if (view == WORLD_SIDE) scene->yaw = side * world__range(&rng, 1.25f, 1.75f);
    if (view == WORLD_ABOVE) scene->yaw = side * world__range(&rng, 0.0f, 1.4f);
    scene->pitch = world__range(&rng, 0.07f, 0.21f);
    if (view == WORLD_ABOVE) scene->pitch = world__range(&rng, 0.95f, 1.2f);
    scene->distance = world__range(&rng, 2.8f, 3.3f);
    scene->fill = world__range(&rng, 0.62f, 0.80f);
    scene->shift[0] = world__range(&rng, -0.5f, 0.5f);
    scene->shift[1] = world__range(&rng, -0.6f, 0.3f);
    scene->light_azimuth = side * world__range(&rng, 0.5f, 1.1f);
    scene->light_elevation = world__range(&rng, 0.75f, 1.05f);
    if (view == WORLD_BACK && scene->accessory == WORLD_SUNGLASSES)
        scene->accessory = WORLD_HAT; /* they would not be seen */
}

void world_sample(uint64_t seed, world_scene *s)
{
    static const float pattern[WORLD_PATTERNS] = {0.60f, 0.22f, 0.18f};
    static const float view[WORLD_VIEWS] = {0.38f, 0.32f, 0.14f, 0.16f};
    static const float accessory[WORLD_ACCESSORIES] = {0.68f, 0.09f, 0.06f, 0.06f, 0.05f, 0.06f};
    static const float pose[WORLD_POSES] = {0.55f, 0.20f, 0.13f, 0.12f};
    static const float expression[WORLD_EXPRESSIONS] = {0.70f, 0.15f, 0.08f, 0.07f};
    static const float style[WORLD_STYLES] = {0.88f, 0.03f, 0.03f, 0.03f, 0.03f};
    world__rng rng = world__rng_make(seed, WORLD__FOR_SCENE);
    float frequency[WORLD_CLASSES];

    memset(s, 0, sizeof *s);
    s->seed = seed;
    for (int i = 0; i < WORLD_CLASSES; i++) frequency[i] = world_class_frequency(i);
    s->object = (int8_t)world__choose(&rng, frequency, WORLD_CLASSES);
    s->head = -1;
    s->glyph = -1;
    s->subject = -1;
    if (world__chance(&rng, 0.03f)) {
        for (int i = 0; i < WORLD_CLASSES; i++)
            if (!world_has_head(i)) frequency[i] = 0.0f;
        do s->head = (int8_t)world__choose(&rng, frequency, WORLD_CLASSES);
        while (s->head == s->object || world__hybrid_is_hidden(s->head, s->object));
    }
    int face = s->head >= 0 ? s->head : s->object; /* whose head it is, if it has one */

    int color = world__below(&rng, WORLD_COLORS);
    int second = world__chance(&rng, 0.45f) ? WORLD_WHITE : world__below(&rng, WORLD_COLORS);
    while (second == color) second = world__below(&rng, WORLD_COLORS);
    float which = world__uniform(&rng);
    int third = which < 0.55f ? color : which < 0.8f ? second : world__below(&rng, WORLD_COLORS);
    world_set_color(s, 0, color);
    world_set_color(s, 1, second);
    world_set_color(s, 2, third);
    world_set_color(s, 3, world__below(&rng, WORLD_COLORS));
    s->pattern = (int8_t)world__choose(&rng, pattern, WORLD_PATTERNS);
    s->pattern_period = world__range(&rng, 0.20f, 0.28f);
    s->pattern_phase = world__uniform(&rng);

    s->place = (int8_t)world__below(&rng, WORLD_PLACES);
    s->style = (int8_t)world__choose(&rng, style, WORLD_STYLES);
    s->accessory = (int8_t)world__choose(&rng, accessory, WORLD_ACCESSORIES);
    if (world_is_animal(face)) s->expression = (int8_t)world__choose(&rng, expression,
                                                                     WORLD_EXPRESSIONS);
    if (world_is_animal(s->object)) s->pose = (int8_t)world__choose(&rng, pose, WORLD_POSES);
    if (s->pose == WORLD_SLEEPING) s->expression = WORLD_NEUTRAL;
    if (s->place == WORLD_POOL) s->pose = WORLD_STANDING; /* afloat */

    for (int i = 0; i < 8; i++) s->shape[i] = world__uniform(&rng);
    for (int i = 0; i < 4; i++) s->backdrop[i] = world__uniform(&rng);
    s->head_yaw = world__range(&rng, -0.3f, 0.3f);
    int seen_from = world__choose(&rng, view, WORLD_VIEWS);
    if (world_has_label(s->object) && s->head < 0 && world__chance(&rng, 0.11f)) {
        s->glyph = (int8_t)world__below(&rng, WORLD_GLYPHS);
        s->pattern = WORLD_PLAIN;
        seen_from = world__label_view(s->object, seen_from);
    }
    world_set_view(s, seen_from, seed);
}

void world_make_individual(world_scene *scene, uint64_t seed)
{
    static const float kinds[] = {0.40f, 0.20f, 0.30f, 0.10f}; /* WORLD_MARK_PATCH ... */
    static const int8_t spots[] = {WORLD_AT_BODY, WORLD_AT_BODY, WORLD_AT_HEAD};
    static const int8_t parts[] = {WORLD_AT_LEFT, WORLD_AT_RIGHT, WORLD_AT_TAIL, WORLD_AT_LEG};
    world__rng rng = world__rng_make(seed, WORLD__FOR_INDIVIDUAL);
    float color[4][3]; /* three of the object, one more for its marks */

    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 3; c++) color[i][c] = world__range(&rng, 0.25f, 0.97f);
    memcpy(scene->rgb, color, 3 * sizeof *color);
    scene->color = scene->second = scene->third = -1;
    scene->pattern = WORLD_PLAIN;
    scene->n_marks = (int8_t)(1 + world__below(&rng, 3));
    for (int i = 0; i < scene->n_marks; i++) {
        world_mark *m = &scene->marks[i];
        memset(m, 0, sizeof *m);
        memcpy(m->rgb, color[1 + world__below(&rng, 3)], sizeof m->rgb);
        m->kind = (int8_t)world__choose(&rng, kinds, 4);
        m->region = m->kind == WORLD_MARK_PATCH ? spots[world__below(&rng, 3)]
                  : m->kind == WORLD_MARK_WHOLE ? parts[world__below(&rng, 4)] : WORLD_AT_BODY;
        m->radius = 1.0f;
        if (m->kind == WORLD_MARK_PATCH) {
            m->radius = world__range(&rng, 0.35f, 0.95f);
            for (int c = 0; c < 3; c++) m->center[c] = world__range(&rng, -0.9f, 0.9f);
        }
        if (m->kind == WORLD_MARK_BAND) {
            m->radius = world__range(&rng, 0.25f, 0.55f);
            m->center[0] = world__range(&rng, -1.2f, 1.2f);
        }
        if (m->kind == WORLD_MARK_TIP) m->center[1] = world__range(&rng, -0.9f, -0.3f);
    }
}

void world_make_owned(world_scene *scene, int owner)
{
    uint64_t who = world_seed(WORLD_PRETRAIN, ((uint64_t)1 << 39)
                                                  + (uint64_t)(64 * owner + scene->object));
    world__rng build = world__rng_make(who, WORLD__FOR_SUBJECT);
    for (int k = 0; k < 8; k++) scene->shape[k] = world__uniform(&build);
    world_make_individual(scene, who);
    scene->head = scene->glyph = -1;
    if (!world_is_animal(scene->object)) scene->expression = WORLD_NEUTRAL; /* a hybrid's head's */
    scene->owner = (int8_t)owner;
}

/* ---- [W-4] Captions ----------------------------------------------------------------------- */

/* Words written one after another into a caller's buffer; what does not fit is cut off. */
typedef struct world__words { char *buf; size_t size, used; } world__words;

static world__words world__words_make(char *buf, size_t size)
{
    world__words w;
    w.buf = buf;
    w.size = size;
    w.used = 0;
    if (size) buf[0] = 0;
    return w;
}
static void world__append(world__words *w, const char *text)
{
    while (*text && w->used + 1 < w->size) w->buf[w->used++] = *text++;
    if (w->size) w->buf[w->used] = 0;
}
/* Appends a word or phrase after a space; nothing for the empty string. */
static void world__put(world__words *w, const char *text)
{
    if (!text || !*text) return;
    if (w->used && *text != ',') world__append(w, " ");
    world__append(w, text);
}
static int world__is_vowel(char c) { return c && strchr("aeiou", c) != NULL; }

#define WORLD__PICK(rng, list) \
    ((list)[world__below((rng), (int)(sizeof(list) / sizeof((list)[0])))])

/* "a" or "an" as the next word asks, at times another determiner. */
static void world__put_article(world__words *w, world__rng *rng, const char *next, int vary)
{
    if (vary && world__chance(rng, 0.10f)) {
        static const char *const other[] = {"the", "one", "my", "this", "the", "some"};
        world__put(w, WORLD__PICK(rng, other));
    } else {
        world__put(w, world__is_vowel(next[0]) ? "an" : "a");
    }
}

/* Which attributes a wording mentions. */
typedef struct world__mentions {
    int style, color, pattern, expression, accessory, pose, glyph, place, view;
} world__mentions;

static world__mentions world__draw_mentions(const world_scene *s, world__rng *rng)
{
    world__mentions m;
    memset(&m, 0, sizeof m);
    m.style = s->style != WORLD_PHOTO && world__chance(rng, 0.95f);
    m.color = s->color >= 0 && world__chance(rng, 0.72f);
    m.pattern = s->pattern != WORLD_PLAIN && s->subject < 0 && world__chance(rng, 0.75f);
    m.expression = s->expression != WORLD_NEUTRAL && world__chance(rng, 0.75f);
    m.accessory = s->accessory != WORLD_NO_ACCESSORY && world__chance(rng, 0.85f);
    m.pose = world_is_animal(s->object)
        && world__chance(rng, s->pose == WORLD_STANDING ? 0.12f : 0.80f);
    m.glyph = s->glyph >= 0 && world__chance(rng, 0.85f);
    m.place = world__chance(rng, 0.72f);
    /* a view that is seldom named is learnt last: a back looks like a front that is hard to see */
    m.view = world__chance(rng, 0.85f);
    return m;
}

/* The adjectives before the noun, in order, into list; returns how many. */
static int world__adjectives(const world_scene *s, const world__mentions *m, world__rng *rng,
                             const char *list[8], int *pattern_is_said)
{
    int n = 0;
    *pattern_is_said = 0;
    if (m->expression && world__chance(rng, 0.8f)) list[n++] = world_expression_name(s->expression);
    if (m->pose && world__chance(rng, 0.35f)) list[n++] = world_pose_name(s->pose);
    int both = m->color && m->pattern && world__chance(rng, 0.3f);
    if (m->pattern && !both && world__chance(rng, 0.5f)) {
        list[n++] = world_pattern_name(s->pattern);
        *pattern_is_said = 1;
    }
    if (m->color) list[n++] = world_color_name(s->color);
    if (both) { /* "a red and blue striped dog" */
        list[n++] = "and";
        list[n++] = world_color_name(s->second);
        list[n++] = world_pattern_name(s->pattern);
        *pattern_is_said = 1;
    }
    return n;
}

/* Owners of things, and people of whom the sentences for the text encoder speak. */
static const char *const world__people[WORLD_OWNERS] = {
    "man", "woman", "boy", "girl", "child", "farmer", "teacher", "doctor", "driver", "baker",
    "painter", "sailor", "singer", "king", "queen", "friend", "mother", "father", "sister",
    "brother", "uncle", "aunt", "neighbour", "student", "writer", "cook", "nurse", "soldier"};

/* "dog", with a rare word before it in few captions. rare is NULL or that word. */
static void world__put_noun_phrase(world__words *w, const world_scene *s, const world__mentions *m,
                                   world__rng *rng, const char *rare)
{
    const char *adjectives[8];
    int pattern_is_said;
    int n = world__adjectives(s, m, rng, adjectives, &pattern_is_said);
    const char *noun = world_class_name(s->object);
    if (s->head >= 0) {
        /* "a red cross of a dog and a duck" has the head of a dog and the body of a duck */
        world__put_article(w, rng, n ? adjectives[0] : rare ? rare : "cross", 1);
        for (int i = 0; i < n; i++) world__put(w, adjectives[i]);
        world__put(w, rare);
        world__put(w, "cross of");
        world__put_article(w, rng, world_class_name(s->head), 0);
        world__put(w, world_class_name(s->head));
        world__put(w, "and");
        world__put_article(w, rng, noun, 0);
        world__put(w, noun);
    } else if (n == 1 && m->color && !rare && world__chance(rng, 0.06f)) {
        world__put_article(w, rng, noun, 1); /* "a dog that is red" */
        world__put(w, noun);
        world__put(w, "that is");
        world__put(w, adjectives[0]);
    } else {
        world__put_article(w, rng, n ? adjectives[0] : rare ? rare : noun, 1);
        for (int i = 0; i < n; i++) world__put(w, adjectives[i]);
        world__put(w, rare);
        world__put(w, noun);
    }
    if (s->owner > 0 && s->head < 0) {
        world__put(w, "of the");
        world__put(w, world__people[s->owner - 1]);
    }
    if (m->pattern && !pattern_is_said) {
        world__put(w, "with");
        if (world__chance(rng, 0.8f)) world__put(w, world_color_name(s->second));
        world__put(w, s->pattern == WORLD_STRIPED ? "stripes" : "spots");
    }
}

static void world__put_accessory(world__words *w, const world_scene *s, world__rng *rng)
{
    static const char *const wearing[] = {"wearing", "with", "in", "that wears", "wearing"};
    const char *name = world_accessory_name(s->accessory);
    int has_color = s->accessory == WORLD_HAT || s->accessory == WORLD_SCARF
                 || s->accessory == WORLD_BOW;
    const char *color = has_color && world__chance(rng, 0.7f)
                      ? world_color_name(s->accessory_color) : NULL;
    world__put(w, WORLD__PICK(rng, wearing));
    if (s->accessory != WORLD_SUNGLASSES) world__put_article(w, rng, color ? color : name, 0);
    world__put(w, color);
    world__put(w, name);
}

static void world__put_glyph(world__words *w, const world_scene *s, world__rng *rng)
{
    static const char *const on_it[] = {"with", "showing", "that shows"};
    char glyph[2] = {0, 0};
    glyph[0] = (char)(s->glyph < 26 ? 'a' + s->glyph : '0' + s->glyph - 26);
    world__put(w, WORLD__PICK(rng, on_it));
    world__put(w, world__chance(rng, 0.75f) ? "the" : "a painted");
    world__put(w, s->glyph < 26 ? "letter" : "number");
    world__put(w, glyph);
    if (world__chance(rng, 0.3f)) world__put(w, "on it");
}

static void world__put_view(world__words *w, const world_scene *s, world__rng *rng)
{
    static const char *const seen[] = {"seen from", "seen from", "from", "viewed from",
                                       "photographed from"};
    world__put(w, WORLD__PICK(rng, seen));
    if (s->view != WORLD_ABOVE) world__put(w, "the");
    world__put(w, world_view_name(s->view));
}

static void world__put_place(world__words *w, const world_scene *s)
{
    world__put(w, world_place_name(s->place));
}

/* How a sentence about the picture may begin. Empty most of the time. */
static void world__put_opening(world__words *w, const world_scene *s, const world__mentions *m,
                               world__rng *rng)
{
    static const char *const photo[] = {"a photo of", "a photo of", "a picture of", "an image of",
                                        "a close view of", "a nice photo of"};
    static const char *const sentence[] = {"there is", "here is", "this is", "we see",
                                           "look at"};
    if (m->style) world__put(w, world_style_name(s->style));
    else if (s->style == WORLD_PHOTO && world__chance(rng, 0.25f))
        world__put(w, WORLD__PICK(rng, photo));
    else if (world__chance(rng, 0.06f)) world__put(w, WORLD__PICK(rng, sentence));
}

/* The rare word for this caption, or NULL. */
static const char *world__draw_rare(world__rng *rng)
{
    float weight[world_n_rare_shown];
    if (!world__chance(rng, WORLD__RARE_CAPTIONS)) return NULL;
    for (int i = 0; i < world_n_rare_shown; i++) weight[i] = world__rare_weight(i);
    return world_rare[world__choose(rng, weight, world_n_rare_shown)];
}

static void world__write_caption(const world_scene *s, world__rng *rng, world__words *w)
{
    const char *rare = world__draw_rare(rng);
    world__mentions m = world__draw_mentions(s, rng);
    if (world__chance(rng, 0.16f)) {
        int style = m.style;
        memset(&m, 0, sizeof m);
        m.style = style;
        if (m.style) world__put(w, world_style_name(s->style));
        else if (world__chance(rng, 0.12f)) world__put(w, "a photo of");
        const char *noun = world_class_name(s->object);
        if (s->head >= 0) {
            world__put_noun_phrase(w, s, &m, rng, rare);
            return;
        }
        world__put_article(w, rng, rare ? rare : noun, 0);
        world__put(w, rare);
        world__put(w, noun);
        return;
    }
    int place_first = m.place && !m.style && world__chance(rng, 0.07f);
    int view_early = m.view && world__chance(rng, 0.3f);
    if (place_first) {
        world__put_place(w, s);
        world__put(w, ",");
    } else {
        world__put_opening(w, s, &m, rng);
    }
    size_t start = w->used;
    world__put_noun_phrase(w, s, &m, rng, rare);
    if (m.glyph) world__put_glyph(w, s, rng);
    if (m.accessory) world__put_accessory(w, s, rng);
    if (m.pose && !strstr(w->buf + start, world_pose_name(s->pose)))
        world__put(w, world_pose_name(s->pose));
    if (m.expression && !strstr(w->buf + start, world_expression_name(s->expression))) {
        world__put(w, "that is");
        world__put(w, world_expression_name(s->expression));
    }
    if (view_early) world__put_view(w, s, rng);
    if (m.place && !place_first) {
        if (world__chance(rng, 0.08f)) world__put(w, ",");
        world__put_place(w, s);
    }
    if (m.view && !view_early) {
        if (world__chance(rng, 0.4f)) world__put(w, ",");
        world__put_view(w, s, rng);
    }
}

void world_caption_kept(const world_scene *scene, uint64_t seed, char *buf, size_t size)
{
    world__rng rng = world__rng_make(world__hash(seed) + scene->seed, WORLD__FOR_CAPTION);
    world__words w = world__words_make(buf, size);
    world__uniform(&rng); /* the number that decides about dropping */
    world__write_caption(scene, &rng, &w);
}

void world_caption(const world_scene *scene, uint64_t seed, char *buf, size_t size)
{
    world__rng rng = world__rng_make(world__hash(seed) + scene->seed, WORLD__FOR_CAPTION);
    world__words w = world__words_make(buf, size);
    if (world__uniform(&rng) < 0.10f) return;
    world__write_caption(scene, &rng, &w);
}

/* Whether `word` of length n is among list[0..count): its index, or -1. */
static int world__find(const char *const *list, int count, const char *word, size_t n)
{
    for (int i = 0; i < count; i++)
        if (strlen(list[i]) == n && memcmp(list[i], word, n) == 0) return i;
    return -1;
}

int world_caption_rare(const char *caption)
{
    while (*caption) {
        size_t n = strcspn(caption, " ,");
        int i = world__find(world_rare, world_n_rare, caption, n);
        if (i >= 0) return i;
        caption += n + (caption[n] != 0);
    }
    return -1;
}

int world_caption_is_bare(const char *caption)
{
    static const char *const articles[] = {"a", "an"};
    size_t article = strcspn(caption, " ");
    if (world__find(articles, 2, caption, article) < 0) return 0;
    const char *noun = caption + article + (caption[article] != 0);
    size_t n = strcspn(noun, " ");
    if (world__find(world_rare, world_n_rare, noun, n) >= 0) noun += n + (noun[n] != 0);
    return world__find(world__class_names, WORLD_CLASSES, noun, strlen(noun)) >= 0;
}

/* ---- [W-5] Text --------------------------------------------------------------------------- */

/* Filler sentences are templates in which an upper-case letter stands for a word of that list. */
static const char *const world__animals[] = {
    "horse", "cow", "sheep", "goat", "pig", "mouse", "fox", "wolf", "lion", "tiger", "monkey",
    "elephant", "frog", "fish", "bird", "snake", "bee", "butterfly", "whale", "shark", "deer",
    "camel", "chicken", "goose", "parrot", "snail", "spider", "ant", "dog", "cat", "duck",
    "rabbit", "bear", "turtle", "owl", "puppy", "kitten", "penguin", "zebra", "donkey"};
static const char *const world__things[] = {
    "table", "chair", "lamp", "book", "pencil", "bottle", "plate", "spoon", "fork", "knife",
    "basket", "box", "bag", "phone", "window", "door", "key", "ball", "doll", "drum", "guitar",
    "piano", "bicycle", "bus", "train", "boat", "plane", "truck", "bed", "sofa", "mirror",
    "blanket", "pillow", "towel", "brush", "bucket", "ladder", "hammer", "rope", "umbrella",
    "car", "mug", "teapot", "robot", "boot", "backpack", "vase", "clock", "candle", "hat",
    "scarf", "crown", "bow", "coat", "shirt", "shoe", "glove", "ring", "coin", "letter",
    "camera", "radio", "kite", "flag", "bell", "cup", "bowl", "jar", "can", "sign"};
static const char *const world__scenery[] = {
    "house", "garden", "park", "school", "shop", "market", "bridge", "river", "lake", "sea",
    "mountain", "hill", "valley", "field", "farm", "barn", "church", "castle", "tower", "station",
    "harbour", "island", "village", "town", "city", "street", "road", "path", "forest", "beach",
    "desert", "kitchen", "bathroom", "bedroom", "office", "library", "museum", "theatre", "moon",
    "cave", "roof", "wall", "fence", "tree", "bush", "rock", "pool"};
static const char *const world__foods[] = {
    "bread", "butter", "cheese", "milk", "tea", "coffee", "water", "juice", "soup", "rice",
    "honey", "sugar", "salt", "apples", "pears", "plums", "cherries", "carrots", "potatoes",
    "beans", "cake", "cookies", "eggs", "meat", "fruit"};
static const char *const world__qualities[] = {
    "big", "small", "old", "young", "new", "tall", "short", "long", "round", "flat", "soft",
    "hard", "warm", "cold", "hot", "wet", "dry", "clean", "dirty", "bright", "dark", "heavy",
    "light", "quick", "slow", "quiet", "loud", "happy", "sad", "angry", "tired", "hungry",
    "brave", "shy", "clever", "kind", "funny", "strange", "beautiful", "pretty", "little",
    "huge", "tiny", "broken", "empty", "full", "rich", "poor", "strong", "weak", "wild", "calm",
    "smiling", "sleeping", "surprised", "striped", "spotted", "wooden", "golden", "silver"};
static const char *const world__colours[] = {
    "red", "orange", "yellow", "green", "blue", "purple", "brown", "white", "black", "pink",
    "grey"};
static const char *const world__transitives[] = {
    "sees", "finds", "likes", "loves", "wants", "holds", "carries", "brings", "takes", "pushes",
    "pulls", "watches", "follows", "hears", "knows", "remembers", "forgets", "buys", "sells",
    "cleans", "washes", "paints", "draws", "breaks", "repairs", "opens", "closes", "hides",
    "keeps", "loses", "throws", "catches", "touches", "needs", "shows", "visits", "meets",
    "helps", "calls", "chases"};
static const char *const world__intransitives[] = {
    "runs", "walks", "jumps", "sleeps", "sits", "stands", "swims", "flies", "climbs", "falls",
    "waits", "dances", "sings", "plays", "works", "rests", "hides", "smiles", "laughs", "cries",
    "shouts", "whispers", "eats", "drinks", "arrives", "leaves", "turns", "stops", "grows",
    "lives"};
static const char *const world__prepositions[] = {
    "in", "on", "near", "behind", "under", "above", "beside", "across", "around", "through",
    "inside", "outside", "before", "past", "over", "below", "towards", "by"};
static const char *const world__times[] = {
    "today", "yesterday", "tomorrow", "in the morning", "in the evening", "at night", "at noon",
    "every day", "every year", "in winter", "in summer", "in spring", "in autumn", "on monday",
    "on friday", "on sunday", "after lunch", "before dinner", "for an hour", "all day", "again",
    "at last", "now", "soon", "often", "always", "never", "sometimes", "once", "later"};
static const char *const world__adverbs[] = {
    "slowly", "quickly", "quietly", "loudly", "happily", "sadly", "carefully", "gently", "well",
    "badly", "together", "alone", "here", "there", "far away", "very much", "too", "too fast"};
static const char *const world__numbers[] = {
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty",
    "many", "few", "several", "no"};
static const char *const world__plurals[] = {
    "dogs", "cats", "cars", "ducks", "mugs", "teapots", "rabbits", "robots", "boots", "backpacks",
    "bears", "vases", "clocks", "turtles", "candles", "owls", "horses", "birds", "trees",
    "flowers", "books", "houses", "stones", "clouds", "stars", "leaves", "boxes", "toys",
    "children", "people", "letters", "words", "pictures", "hands", "eyes", "ears", "legs",
    "tails", "wings", "wheels"};

typedef struct world__list { char letter; const char *const *words; int n; } world__list;
#define WORLD__LIST(letter, words) {letter, words, (int)(sizeof(words) / sizeof((words)[0]))}
static const world__list world__lists[] = {
    WORLD__LIST('A', world__animals), WORLD__LIST('T', world__things),
    WORLD__LIST('P', world__people), WORLD__LIST('S', world__scenery),
    WORLD__LIST('F', world__foods), WORLD__LIST('Q', world__qualities),
    WORLD__LIST('C', world__colours), WORLD__LIST('V', world__transitives),
    WORLD__LIST('I', world__intransitives), WORLD__LIST('R', world__prepositions),
    WORLD__LIST('D', world__times), WORLD__LIST('M', world__adverbs),
    WORLD__LIST('N', world__numbers), WORLD__LIST('L', world__plurals),
    WORLD__LIST('K', world__class_names), WORLD__LIST('G', world__place_names)};

/* "@" is "a" or "an", as the word after it asks. */
static const char *const world__sentences[] = {
    "the P V @ Q T", "@ Q A I R the S", "the P and the P V the T D", "the T is C",
    "the T is Q and C", "@ C T is R the S", "D the P V the A", "the A I M",
    "the A I M R the S", "N L are R the S", "there are N L R the S", "the P has N L",
    "the P V N Q L", "my P I R the S D", "the L are Q", "the L are C and the T is C",
    "the P eats F with F", "the P drinks F D", "we eat F R the S", "this T is too Q",
    "where is the T of the P", "who V the A", "the A of the P is Q", "the P is Q D",
    "@ Q P I M R @ Q S", "the P V the A because it is Q", "when the P I , the A I",
    "if the A is Q , the P V it", "the A is Q but the A is Q", "she has @ Q C T",
    "he gives the T to the P", "they V the A R the S", "it is Q in the S D",
    "the S is full of L", "the sky is C and the S is Q", "the sun shines R the S",
    "the rain falls R the S", "the wind is Q D", "@ T is @ thing and @ A is an animal",
    "C and C are colours", "the colour of the T is C", "the P wears @ C T",
    "the A has C eyes and @ Q tail", "the A sleeps R the T", "the T stands G",
    "the P V @ K G", "@ K and @ K are G", "the K belongs to the P", "every K has its own T",
    "we like the C K", "the Q K is not @ Q K", "the K is R the T", "the K G is C",
    "most L are C", "the P sees the K from above", "the front of the K is C",
    "the back of the K is Q", "the left side of the T is C and the right side is C",
    "the letter on the T is Q", "the P writes @ letter to the P"};

static void world__write_filler(world__rng *rng, world__words *w)
{
    const char *const *end = world__sentences
                           + sizeof world__sentences / sizeof world__sentences[0];
    const char *at = world__sentences[world__below(rng, (int)(end - world__sentences))];
    int article = 0;
    while (*at) {
        char word[24];
        size_t n = strcspn(at, " ");
        memcpy(word, at, n);
        word[n] = 0;
        at += n + (at[n] == ' ');
        if (!strcmp(word, "@")) {
            article = 1;
            continue;
        }
        const char *chosen = word;
        if (n == 1 && word[0] >= 'A' && word[0] <= 'Z') {
            for (size_t i = 0; i < sizeof world__lists / sizeof world__lists[0]; i++)
                if (world__lists[i].letter == word[0])
                    chosen = world__lists[i].words[world__below(rng, world__lists[i].n)];
        }
        if (article) world__put(w, world__is_vowel(chosen[0]) ? "an" : "a");
        article = 0;
        world__put(w, chosen);
    }
}

void world_text(uint64_t seed, char *buf, size_t size)
{
    world__rng rng = world__rng_make(seed, WORLD__FOR_TEXT);
    world__words w = world__words_make(buf, size);
    if (world__chance(&rng, 0.55f)) {
        world_scene scene;
        world_sample(seed, &scene);
        world__write_caption(&scene, &rng, &w);
    } else {
        world__write_filler(&rng, &w);
    }
}

/* ---- [W-6] Shapes ------------------------------------------------------------------------- */

/* A model is a list of parts. Each has its own orthonormal frame (rows of `axis`, from `origin`),
   in which its shape is
     ELLIPSOID  centred, radii size[0..2]; size[3..5] are their inverses
     BOX        centred, half sides size[0..2], edges rounded by size[3]
     LIMB       around y from 0 to size[0], radius from size[1] to size[2], with round ends
     CONE       the same with flat ends, edges rounded by size[3]
     TORUS      around y, radius size[0] of the ring, size[1] of the tube
     LATHE      around y from 0 to size[0], radius given by size[1..5] at equal steps; if size[6]
                is positive the vessel is hollow, with walls that thick
   `flat` < 1 squeezes the shape along its own z. A part with blend > 0 melts into those before it
   over that distance.                                                                          */
enum { WORLD__ELLIPSOID, WORLD__BOX, WORLD__LIMB, WORLD__CONE, WORLD__TORUS, WORLD__LATHE };

enum {
    WORLD__MAIN, WORLD__SECOND, WORLD__THIRD, WORLD__ACCESSORY, WORLD__DARK, WORLD__BRIGHT,
    WORLD__PINK, WORLD__ORANGE, WORLD__GOLD, WORLD__GLASS, WORLD__MOUTH, WORLD__LAMP,
    WORLD__FLAME, WORLD__METAL, WORLD__STEM, WORLD__COFFEE, WORLD__MATERIALS
};

typedef struct world__part {
    int shape, material, region;
    float blend, flat;
    w3 origin, axis[3];
    float size[7];
    w3 middle;    /* of the bounding sphere */
    float radius; /* likewise               */
} world__part;

/* Where parts are being added: x forward, y up, z left, lengths times scale. */
typedef struct world__frame { w3 origin, axis[3]; float scale; } world__frame;

#define WORLD__PARTS 64
typedef struct world__model {
    world__part part[WORLD__PARTS];
    int n;
    int region;          /* given to the parts being added */
    world__frame frame;  /* in which they are added        */
    world__frame head;   /* unit = radius of the head      */
    world__frame body;   /* unit = radius of the body      */
    /* Anchors of the accessories, in object space; hats stand on top, scarfs go around the neck,
       sunglasses sit on the face. */
    w3 top, neck, face;
    float top_size, neck_size, face_size;
    w3 label;            /* middle of the area for painted letters */
    float label_size;    /* its half height */
    w3 middle;           /* bounding sphere of all parts */
    float radius;
} world__model;

static world__frame world__frame_make(w3 origin, float yaw, float pitch, float scale)
{
    world__frame f;
    f.origin = origin;
    f.axis[0] = w3_make(cosf(yaw) * cosf(pitch), sinf(pitch), sinf(yaw) * cosf(pitch));
    f.axis[2] = w3_make(-sinf(yaw), 0.0f, cosf(yaw));
    f.axis[1] = w3_cross(f.axis[2], f.axis[0]);
    f.scale = scale;
    return f;
}
static w3 world__direction(const world__frame *f, w3 v)
{
    return w3_add(w3_add(w3_scale(f->axis[0], v.x), w3_scale(f->axis[1], v.y)),
                  w3_scale(f->axis[2], v.z));
}
static w3 world__point(const world__frame *f, w3 v)
{
    return w3_madd(f->origin, world__direction(f, v), f->scale);
}
/* The other way round: object space to frame. */
static w3 world__into(const world__frame *f, w3 p)
{
    w3 v = w3_scale(w3_sub(p, f->origin), 1.0f / f->scale);
    return w3_make(w3_dot(v, f->axis[0]), w3_dot(v, f->axis[1]), w3_dot(v, f->axis[2]));
}

/* Appends a part at `at` in the current frame and returns it; its own y axis points along `up`,
   its z axis as far as possible along `side`. The caller sets size[], middle and radius. */
static world__part *world__add(world__model *m, int shape, int material, float blend, w3 at, w3 up,
                               w3 side)
{
    world__part *p = &m->part[m->n < WORLD__PARTS ? m->n++ : WORLD__PARTS - 1];
    memset(p, 0, sizeof *p);
    p->shape = shape;
    p->material = material;
    p->region = m->region;
    p->blend = blend * m->frame.scale;
    p->flat = 1.0f;
    p->origin = world__point(&m->frame, at);
    p->middle = p->origin;
    p->axis[1] = w3_unit(world__direction(&m->frame, up));
    w3 z = world__direction(&m->frame, side);
    p->axis[2] = w3_unit(w3_madd(z, p->axis[1], -w3_dot(z, p->axis[1])));
    p->axis[0] = w3_cross(p->axis[1], p->axis[2]);
    return p;
}

static world__part *world__ellipsoid_tilted(world__model *m, int material, float blend, w3 at,
                                            w3 radii, w3 up)
{
    w3 side = fabsf(up.z) > 0.7f ? w3_make(0, 1, 0) : w3_make(0, 0, 1);
    world__part *p = world__add(m, WORLD__ELLIPSOID, material, blend, at, up, side);
    p->size[0] = radii.x * m->frame.scale;
    p->size[1] = radii.y * m->frame.scale;
    p->size[2] = radii.z * m->frame.scale;
    for (int i = 0; i < 3; i++) p->size[3 + i] = 1.0f / p->size[i];
    p->radius = world__max(p->size[0], world__max(p->size[1], p->size[2]));
    return p;
}
static world__part *world__ellipsoid(world__model *m, int material, float blend, w3 at, w3 radii)
{
    return world__ellipsoid_tilted(m, material, blend, at, radii, w3_make(0, 1, 0));
}
static world__part *world__ball(world__model *m, int material, float blend, w3 at, float radius)
{
    return world__ellipsoid(m, material, blend, at, w3_make(radius, radius, radius));
}
static world__part *world__box(world__model *m, int material, float blend, w3 at, w3 half,
                               float round)
{
    world__part *p = world__add(m, WORLD__BOX, material, blend, at, w3_make(0, 1, 0),
                                w3_make(0, 0, 1));
    float s = m->frame.scale;
    p->size[0] = half.x * s;
    p->size[1] = half.y * s;
    p->size[2] = half.z * s;
    p->size[3] = round * s;
    p->radius = w3_length(half) * s;
    return p;
}
/* LIMB or CONE from a to b, in the current frame. */
static world__part *world__rod(world__model *m, int shape, int material, float blend, w3 a, w3 b,
                               float radius_a, float radius_b)
{
    w3 along = w3_sub(b, a);
    w3 side = fabsf(along.z) > 0.8f * w3_length(along) ? w3_make(1, 0, 0) : w3_make(0, 0, 1);
    world__part *p = world__add(m, shape, material, blend, a, along, side);
    float s = m->frame.scale;
    p->size[0] = w3_length(along) * s;
    p->size[1] = radius_a * s;
    p->size[2] = radius_b * s;
    p->middle = w3_madd(p->origin, p->axis[1], 0.5f * p->size[0]);
    float reach = world__max(p->size[1], p->size[2]);
    p->radius = shape == WORLD__LIMB ? 0.5f * p->size[0] + reach
                                     : sqrtf(0.25f * p->size[0] * p->size[0] + reach * reach);
    return p;
}
static world__part *world__limb(world__model *m, int material, float blend, w3 a, w3 b,
                                float radius_a, float radius_b)
{
    return world__rod(m, WORLD__LIMB, material, blend, a, b, radius_a, radius_b);
}
static world__part *world__cone(world__model *m, int material, float blend, w3 a, w3 b,
                                float radius_a, float radius_b, float round)
{
    world__part *p = world__rod(m, WORLD__CONE, material, blend, a, b, radius_a, radius_b);
    p->size[3] = round * m->frame.scale;
    return p;
}
static world__part *world__torus(world__model *m, int material, float blend, w3 at, w3 around,
                                 float ring, float tube)
{
    w3 side = fabsf(around.z) > 0.7f ? w3_make(1, 0, 0) : w3_make(0, 0, 1);
    world__part *p = world__add(m, WORLD__TORUS, material, blend, at, around, side);
    p->size[0] = ring * m->frame.scale;
    p->size[1] = tube * m->frame.scale;
    p->radius = p->size[0] + p->size[1];
    return p;
}
static world__part *world__lathe(world__model *m, int material, float blend, w3 at, float height,
                                 const float radius[5], float wall)
{
    world__part *p = world__add(m, WORLD__LATHE, material, blend, at, w3_make(0, 1, 0),
                                w3_make(0, 0, 1));
    float s = m->frame.scale, widest = 0.0f;
    p->size[0] = height * s;
    for (int i = 0; i < 5; i++) {
        p->size[1 + i] = radius[i] * s;
        widest = world__max(widest, p->size[1 + i]);
    }
    p->size[6] = wall * s;
    p->middle = w3_madd(p->origin, p->axis[1], 0.5f * p->size[0]);
    p->radius = 1.06f * sqrtf(0.25f * p->size[0] * p->size[0] + widest * widest);
    return p;
}
/* Squeezes a part along its own z. */
static void world__flatten(world__part *p, float flat) { p->flat = flat; }

/* Radius of a lathe at height y and, in *slope, its derivative: a Catmull-Rom spline. */
static float world__lathe_radius(const world__part *p, float y, float *slope)
{
    float t = world__clamp(y / p->size[0], 0.0f, 0.9999f) * 4.0f;
    int i = (int)t;
    float u = t - (float)i;
    const float *r = p->size + 1;
    float r0 = r[i > 0 ? i - 1 : 0], r1 = r[i], r2 = r[i + 1], r3 = r[i < 3 ? i + 2 : 4];
    float b = 0.5f * (r2 - r0), c = r0 - 2.5f * r1 + 2.0f * r2 - 0.5f * r3;
    float d = 0.5f * (r3 - r0) + 1.5f * (r1 - r2);
    *slope = (b + u * (2.0f * c + u * 3.0f * d)) * 4.0f / p->size[0];
    return r1 + u * (b + u * (c + u * d));
}

/* Signed distance of the flat-ended region |side| < 0, 0 < y < height, rounded. */
static inline float world__capped(float side, float y, float height, float round)
{
    float dx = side + round;
    float dy = fabsf(y - 0.5f * height) - 0.5f * height + round;
    float out_x = world__max(dx, 0.0f), out_y = world__max(dy, 0.0f);
    return sqrtf(out_x * out_x + out_y * out_y) + world__min(world__max(dx, dy), 0.0f) - round;
}

/* Signed distance from q to the part, or a lower bound of it near the surface. */
static float world__part_distance(const world__part *p, w3 q)
{
    q = w3_sub(q, p->origin);
    w3 v = w3_make(w3_dot(q, p->axis[0]), w3_dot(q, p->axis[1]), w3_dot(q, p->axis[2]));
    const float *size = p->size;
    float d;
    if (p->flat < 1.0f) v.z /= p->flat;
    switch (p->shape) {
    case WORLD__ELLIPSOID: {
        w3 a = w3_make(v.x * size[3], v.y * size[4], v.z * size[5]);
        w3 b = w3_make(a.x * size[3], a.y * size[4], a.z * size[5]);
        float k = w3_length(a);
        d = k * (k - 1.0f) / (w3_length(b) + 1e-9f);
        break;
    }
    case WORLD__BOX: {
        w3 a = w3_make(fabsf(v.x) - size[0] + size[3], fabsf(v.y) - size[1] + size[3],
                       fabsf(v.z) - size[2] + size[3]);
        w3 out = w3_make(world__max(a.x, 0.0f), world__max(a.y, 0.0f), world__max(a.z, 0.0f));
        float inside = world__min(world__max(a.x, world__max(a.y, a.z)), 0.0f);
        d = w3_length(out) + inside - size[3];
        break;
    }
    case WORLD__LIMB: {
        float t = world__clamp(v.y / size[0], 0.0f, 1.0f);
        float y = v.y - t * size[0];
        d = sqrtf(v.x * v.x + y * y + v.z * v.z) - world__mix(size[1], size[2], t);
        break;
    }
    case WORLD__CONE: {
        float t = world__clamp(v.y / size[0], 0.0f, 1.0f);
        float slope = (size[2] - size[1]) / size[0];
        float side = sqrtf(v.x * v.x + v.z * v.z) - world__mix(size[1], size[2], t);
        d = world__capped(side / sqrtf(1.0f + slope * slope), v.y, size[0], size[3]);
        break;
    }
    case WORLD__TORUS: {
        float ring = sqrtf(v.x * v.x + v.z * v.z) - size[0];
        d = sqrtf(ring * ring + v.y * v.y) - size[1];
        break;
    }
    default: { /* WORLD__LATHE */
        float slope;
        float radius = world__lathe_radius(p, v.y, &slope);
        float side = sqrtf(v.x * v.x + v.z * v.z) - radius;
        float straighten = 1.0f / sqrtf(1.0f + slope * slope);
        d = world__capped(side * straighten, v.y, size[0], 0.012f);
        if (size[6] > 0.0f) {
            float hollow = world__max((side + size[6]) * straighten, size[6] - v.y);
            d = world__max(d, -hollow);
        }
        d *= 0.75f; /* the profile may bend back towards the ray */
        break;
    }
    }
    return p->flat < 1.0f ? d * p->flat : d;
}

/* Signed distance from q to the union of the parts in list[0..n), or a lower bound; *nearest is
   the index of the part nearest to q. */
static float world__distance(const world__model *m, const uint8_t *list, int n, w3 q, int *nearest)
{
    float d = 1e9f, nearest_distance = 1e9f;
    for (int i = 0; i < n; i++) {
        const world__part *p = &m->part[list[i]];
        w3 to = w3_sub(q, p->middle);
        float limit = d + p->radius + p->blend;
        if (limit < 0.0f || w3_dot(to, to) > limit * limit) continue;
        float e = world__part_distance(p, q);
        if (e < nearest_distance) {
            nearest_distance = e;
            *nearest = list[i];
        }
        if (p->blend > 0.0f) { /* a smooth minimum */
            float h = world__max(p->blend - fabsf(d - e), 0.0f);
            d = world__min(d, e) - 0.25f * h * h / p->blend;
        } else {
            d = world__min(d, e);
        }
    }
    return d;
}

/* Half width of the part in a direction (unit), about its bounding sphere's middle. */
static float world__extent(const world__part *p, w3 direction)
{
    float x = fabsf(w3_dot(direction, p->axis[0])), y = fabsf(w3_dot(direction, p->axis[1]));
    float z = fabsf(w3_dot(direction, p->axis[2])) * p->flat;
    const float *size = p->size;
    float across = sqrtf(world__max(x * x + z * z, 0.0f));
    switch (p->shape) {
    case WORLD__ELLIPSOID:
        return sqrtf(x * x * size[0] * size[0] + y * y * size[1] * size[1]
                     + z * z * size[2] * size[2]);
    case WORLD__BOX:
        return x * size[0] + y * size[1] + z * size[2] - 0.5f * size[3] * (x + y + z - 1.0f);
    case WORLD__LIMB:
        return 0.5f * size[0] * y + world__max(size[1], size[2]);
    case WORLD__CONE:
        return 0.5f * size[0] * y + world__max(size[1], size[2]) * across;
    case WORLD__TORUS:
        return size[0] * across + size[1];
    default: {
        float widest = 0.0f;
        for (int i = 0; i < 5; i++) {
            float height = fabsf(0.25f * (float)i - 0.5f) * size[0];
            widest = world__max(widest, height * y + size[1 + i] * across);
        }
        return widest;
    }
    }
}

/* ---- [W-7] Classes ------------------------------------------------------------------------ */

/* Sets where parts are added from here on, and to which region they belong. */
static void world__at_region(world__model *m, int region) { m->region = region; }

/* Heads are built in a frame whose unit is the head's radius and whose origin is its middle. */

/* Both eyes, on the surface at (x, y, +-z), of radius r. */
static void world__eyes(world__model *m, const world_scene *s, float x, float y, float z, float r)
{
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        w3 at = w3_make(x, y, z * side);
        if (s->pose == WORLD_SLEEPING) { /* closed: a curved line */
            w3 low = w3_make(x + 0.06f, y - 0.08f, z * side);
            world__limb(m, WORLD__DARK, 0, w3_make(x, y, (z - 1.3f * r) * side), low, 0.05f, 0.06f);
            world__limb(m, WORLD__DARK, 0, low, w3_make(x - 0.05f, y, (z + 1.3f * r) * side), 0.06f,
                        0.05f);
            continue;
        }
        if (s->expression == WORLD_SURPRISED) {
            world__ball(m, WORLD__BRIGHT, 0, at, 1.9f * r);
            at.x += 1.35f * r;
            world__ball(m, WORLD__DARK, 0, at, 0.9f * r);
            continue;
        }
        world__ellipsoid(m, WORLD__DARK, 0, at, w3_make(r, 1.15f * r, r));
        if (s->expression == WORLD_ANGRY) /* brows falling towards the nose */
            world__limb(m, WORLD__DARK, 0, w3_make(x + 0.12f, y + 0.9f * r, (z - 1.2f * r) * side),
                        w3_make(x, y + 2.6f * r, (z + 1.7f * r) * side), 0.09f, 0.09f);
    }
}

/* The mouth: nothing when neutral, open when smiling, small and round when surprised. x is its
   middle on the surface, width its half width. */
static void world__mouth(world__model *m, const world_scene *s, float x, float y, float width)
{
    if (s->expression == WORLD_SMILING) {
        world__ellipsoid(m, WORLD__MOUTH, 0, w3_make(x, y, 0),
                         w3_make(0.20f, 0.75f * width, 1.15f * width));
        world__ellipsoid(m, WORLD__PINK, 0, w3_make(x + 0.08f, y - 0.4f * width, 0),
                         w3_make(0.18f, 0.35f * width, 0.6f * width));
    }
    if (s->expression == WORLD_SURPRISED)
        world__ellipsoid(m, WORLD__MOUTH, 0, w3_make(x, y, 0),
                         w3_make(0.18f, 0.6f * width, 0.5f * width));
}

/* Sets the accessories' anchors of a head from its frame: how high its top is and how wide hats
   are, how far forward the eyes are and how wide apart. */
static void world__head_anchors(world__model *m, float top, float top_size, float face_x,
                                float face_y, float face_size)
{
    float scale = m->frame.scale;
    m->top = world__point(&m->frame, w3_make(-0.05f, top, 0));
    m->top_size = top_size * scale;
    m->face = world__point(&m->frame, w3_make(face_x, face_y, 0));
    m->face_size = face_size * scale;
}

static void world__dog_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float snout = 1.15f + 0.35f * g[4];
    world__ellipsoid(m, WORLD__MAIN, 0.2f, w3_make(0, 0, 0), w3_make(1.0f, 0.95f, 0.95f));
    world__limb(m, WORLD__SECOND, 0.12f, w3_make(0.5f, -0.3f, 0), w3_make(snout, -0.32f, 0), 0.5f,
                0.40f);
    world__ellipsoid(m, WORLD__DARK, 0, w3_make(snout + 0.3f, -0.12f, 0),
                     w3_make(0.17f, 0.17f, 0.23f));
    world__mouth(m, s, snout + 0.1f, -0.70f, 0.42f);
    world__eyes(m, s, 0.86f, 0.25f, 0.40f, 0.16f);
    for (int i = -1; i <= 1; i += 2) { /* hanging ears */
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__part *ear = world__limb(m, WORLD__THIRD, 0.1f, w3_make(0, 0.62f, 0.85f * side),
                                       w3_make(-0.02f, -0.25f - 0.5f * g[5], 1.12f * side), 0.30f,
                                       0.42f);
        ear->axis[2] = m->frame.axis[2]; /* flat against the cheek */
        ear->axis[0] = w3_unit(w3_cross(ear->axis[1], ear->axis[2]));
        ear->axis[2] = w3_cross(ear->axis[0], ear->axis[1]);
        world__flatten(ear, 0.5f);
    }
    world__head_anchors(m, 0.80f, 0.85f, 0.92f, 0.26f, 0.9f);
}

static void world__cat_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    world__ellipsoid(m, WORLD__MAIN, 0.2f, w3_make(0, 0, 0), w3_make(0.92f, 0.85f, 1.05f));
    for (int i = -1; i <= 1; i += 2)
        world__ball(m, WORLD__SECOND, 0.08f, w3_make(0.78f, -0.32f, 0.2f * (float)i), 0.28f);
    world__ellipsoid(m, WORLD__PINK, 0, w3_make(1.03f, -0.12f, 0), w3_make(0.10f, 0.09f, 0.13f));
    world__mouth(m, s, 0.95f, -0.62f, 0.36f);
    world__eyes(m, s, 0.80f, 0.16f, 0.42f, 0.17f);
    for (int i = -1; i <= 1; i += 2) { /* pointed ears with a light inside */
        float side = (float)i, tip = 1.40f + 0.25f * g[5];
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__cone(m, WORLD__THIRD, 0.1f, w3_make(0.0f, 0.45f, 0.62f * side),
                    w3_make(-0.05f, tip, 0.86f * side), 0.48f, 0.05f, 0.04f);
        world__cone(m, WORLD__PINK, 0, w3_make(0.22f, 0.50f, 0.62f * side),
                    w3_make(0.06f, tip - 0.22f, 0.82f * side), 0.30f, 0.03f, 0.02f);
    }
    world__head_anchors(m, 0.72f, 0.72f, 0.86f, 0.18f, 0.95f);
}

static void world__duck_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float bill = 0.55f + 0.25f * g[4];
    world__ball(m, WORLD__MAIN, 0.3f, w3_make(0, 0, 0), 1.0f);
    world__ellipsoid(m, WORLD__ORANGE, 0, w3_make(0.85f + 0.5f * bill, -0.12f, 0),
                     w3_make(bill, 0.20f, 0.52f));
    if (s->expression == WORLD_SMILING || s->expression == WORLD_SURPRISED) { /* open bill */
        world__ellipsoid(m, WORLD__MOUTH, 0, w3_make(0.95f, -0.36f, 0),
                         w3_make(0.5f * bill, 0.2f, 0.4f));
        world__ellipsoid_tilted(m, WORLD__ORANGE, 0, w3_make(0.8f + 0.4f * bill, -0.62f, 0),
                                w3_make(0.9f * bill, 0.13f, 0.42f), w3_make(0.4f, 1, 0));
    }
    world__eyes(m, s, 0.72f, 0.36f, 0.50f, 0.19f);
    world__head_anchors(m, 0.86f, 0.85f, 0.80f, 0.36f, 0.95f);
}

static void world__rabbit_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float tall = 2.2f + 0.5f * g[5];
    world__ellipsoid(m, WORLD__MAIN, 0.2f, w3_make(0, 0, 0), w3_make(1.0f, 0.92f, 0.92f));
    for (int i = -1; i <= 1; i += 2)
        world__ball(m, WORLD__SECOND, 0.1f, w3_make(0.75f, -0.32f, 0.26f * (float)i), 0.36f);
    world__ellipsoid(m, WORLD__PINK, 0, w3_make(1.1f, -0.08f, 0), w3_make(0.11f, 0.1f, 0.15f));
    world__box(m, WORLD__BRIGHT, 0, w3_make(0.98f, -0.66f, 0), w3_make(0.08f, 0.20f, 0.17f), 0.04f);
    world__mouth(m, s, 0.86f, -0.74f, 0.36f);
    world__eyes(m, s, 0.80f, 0.28f, 0.46f, 0.17f);
    for (int i = -1; i <= 1; i += 2) { /* long ears, pink inside */
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__limb(m, WORLD__MAIN, 0.15f, w3_make(-0.15f, 0.7f, 0.36f * side),
                    w3_make(-0.35f, tall, 0.62f * side), 0.24f, 0.27f);
        world__limb(m, WORLD__PINK, 0, w3_make(0.06f, 1.0f, 0.42f * side),
                    w3_make(-0.12f, tall, 0.61f * side), 0.10f, 0.14f);
    }
    world__head_anchors(m, 0.80f, 0.70f, 0.92f, 0.28f, 0.92f);
}

static void world__bear_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    world__ellipsoid(m, WORLD__MAIN, 0.2f, w3_make(0, 0, 0), w3_make(0.95f, 0.92f, 1.05f));
    world__ellipsoid(m, WORLD__SECOND, 0.05f, w3_make(0.85f, -0.28f, 0),
                     w3_make(0.40f, 0.36f, 0.46f));
    world__ellipsoid(m, WORLD__DARK, 0, w3_make(1.2f, -0.12f, 0), w3_make(0.13f, 0.13f, 0.2f));
    world__mouth(m, s, 1.02f, -0.62f, 0.40f);
    world__eyes(m, s, 0.80f, 0.24f, 0.42f, 0.14f);
    for (int i = -1; i <= 1; i += 2) { /* round ears */
        float side = (float)i, r = 0.34f + 0.12f * g[5];
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__ball(m, WORLD__MAIN, 0.1f, w3_make(-0.05f, 0.82f, 0.80f * side), r);
        world__ellipsoid(m, WORLD__THIRD, 0, w3_make(0.22f, 0.82f, 0.80f * side),
                         w3_make(0.14f, 0.6f * r, 0.6f * r));
    }
    world__head_anchors(m, 0.80f, 0.75f, 0.90f, 0.26f, 0.92f);
}

static void world__turtle_head(world__model *m, const world_scene *s)
{
    world__ellipsoid(m, WORLD__SECOND, 0.3f, w3_make(0, 0, 0), w3_make(1.15f, 0.92f, 0.95f));
    world__eyes(m, s, 0.72f, 0.42f, 0.52f, 0.19f);
    world__mouth(m, s, 1.05f, -0.32f, 0.44f);
    world__head_anchors(m, 0.80f, 0.85f, 0.85f, 0.42f, 0.95f);
}

static void world__owl_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    world__ellipsoid(m, WORLD__MAIN, 0.3f, w3_make(0, 0, 0), w3_make(0.90f, 0.88f, 1.08f));
    for (int i = -1; i <= 1; i += 2) { /* discs around the eyes, tufts */
        float side = (float)i;
        world__ellipsoid(m, WORLD__BRIGHT, 0, w3_make(0.62f, 0.10f, 0.42f * side),
                         w3_make(0.30f, 0.44f, 0.44f));
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__cone(m, WORLD__THIRD, 0.1f, w3_make(0.15f, 0.55f, 0.55f * side),
                    w3_make(0.20f, 1.25f + 0.25f * g[5], 1.0f * side), 0.32f, 0.04f, 0.03f);
        world__at_region(m, WORLD_AT_HEAD);
    }
    world__cone(m, WORLD__ORANGE, 0, w3_make(0.80f, 0.0f, 0), w3_make(1.12f, -0.36f, 0), 0.20f,
                0.04f, 0.03f);
    world__mouth(m, s, 0.84f, -0.52f, 0.24f);
    world__eyes(m, s, 0.84f, 0.10f, 0.40f, 0.20f);
    world__head_anchors(m, 0.76f, 0.80f, 0.92f, 0.10f, 0.95f);
}

static void world__robot_head(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float wide = 0.85f + 0.25f * g[3];
    world__box(m, WORLD__MAIN, 0, w3_make(0, 0, 0), w3_make(0.78f, 0.75f, wide), 0.15f);
    world__box(m, WORLD__DARK, 0, w3_make(0.72f, 0.18f, 0), w3_make(0.12f, 0.30f, 0.8f * wide),
               0.08f);
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        world__ball(m, WORLD__LAMP, 0, w3_make(0.80f, 0.18f, 0.40f * side), 0.20f);
        world__cone(m, WORLD__SECOND, 0, w3_make(0, 0, wide * side),
                    w3_make(0, 0, (wide + 0.2f) * side), 0.30f, 0.22f, 0.04f);
    }
    world__box(m, WORLD__METAL, 0, w3_make(0.76f, -0.42f, 0), w3_make(0.06f, 0.12f, 0.40f), 0.03f);
    world__limb(m, WORLD__METAL, 0, w3_make(0, 0.7f, 0), w3_make(0, 1.25f + 0.3f * g[5], 0), 0.07f,
                0.07f);
    world__ball(m, WORLD__MOUTH, 0, w3_make(0, 1.35f + 0.3f * g[5], 0), 0.20f);
    world__head_anchors(m, 0.72f, 0.85f, 0.86f, 0.18f, 0.95f);
}

/* Bodies stand on y = 0, are about 1 high with their head, and set the frames of body and head,
   the scarf's place and the label. */

static void world__set_head(world__model *m, const world_scene *s, w3 at, float radius, float pitch)
{
    m->head = world__frame_make(at, s->head_yaw, pitch, radius);
    m->neck = w3_make(at.x - 0.15f * radius, at.y - 0.85f * radius, at.z);
    m->neck_size = 0.72f * radius;
}

static void world__set_body(world__model *m, w3 at, float radius)
{
    m->body = world__frame_make(at, 0, 0, radius);
    m->label = at;
    m->label_size = 0.5f * radius;
}

/* Anchors of a thing without a face: hat on top, scarf around, sunglasses on the front. */
static void world__thing_anchors(world__model *m, const world_scene *s, w3 top, float top_size,
                                 w3 neck, float neck_size, w3 face, float face_size)
{
    m->top = top;
    m->top_size = top_size;
    m->face = face;
    m->face_size = face_size;
    world__set_head(m, s, w3_make(top.x, top.y + 0.17f, top.z), 0.25f, 0.0f);
    m->neck = neck;
    m->neck_size = neck_size;
}

/* Dogs and cats. tail_up: where the tail's end is above its root, tail_back: behind it. */
static void world__four_legs(world__model *m, const world_scene *s, float length, float height,
                             float girth, float head, w3 tail_middle, w3 tail_end, float tail)
{
    float leg = 0.30f * girth;                       /* radius */
    float lift = s->pose == WORLD_JUMPING ? 0.28f : 0.0f;
    w3 hip = w3_make(-length, height + girth + lift, 0);
    w3 chest = w3_make(length, height + girth + lift, 0);
    float head_dx = 0.35f * head, head_dy = girth + 0.50f * head;
    if (s->pose == WORLD_SITTING) {
        hip = w3_make(-0.55f * length, 0.95f * girth, 0);
        chest = w3_make(0.45f * length, girth + 0.75f * (height + length), 0);
        head_dx = 0.3f * head;
        head_dy = 0.75f * girth + 0.6f * head;
    }
    if (s->pose == WORLD_SLEEPING) {
        hip = w3_make(-0.75f * length, 1.05f * girth, 0);
        chest = w3_make(0.55f * length, 0.95f * girth, 0);
        head_dx = 0.55f * girth + 0.45f * head;
        head_dy = head - 0.85f * girth;
    }
    if (s->pose == WORLD_JUMPING) chest.y += 0.12f;

    world__limb(m, WORLD__MAIN, 0.0f, hip, chest, girth, 0.95f * girth);
    for (int i = -1; i <= 1; i += 2) {
        float z = 0.58f * girth * (float)i;
        w3 shoulder = w3_make(chest.x * 0.85f, chest.y - 0.3f * girth, z);
        w3 thigh = w3_make(hip.x * 0.9f, hip.y - 0.3f * girth, z);
        w3 hand = w3_make(shoulder.x + 0.02f, leg, z);
        w3 foot = w3_make(thigh.x - 0.02f, leg, z);
        if (s->pose == WORLD_JUMPING) {
            hand = w3_make(shoulder.x + 0.26f, shoulder.y - height, z);
            foot = w3_make(thigh.x - 0.26f, thigh.y - height, z);
        }
        if (s->pose == WORLD_SITTING) {
            hand = w3_make(chest.x + 0.04f, leg, z);
            thigh = w3_make(hip.x, 0.9f * girth, 1.1f * z);
            foot = w3_make(hip.x + 1.3f * girth, leg, 1.5f * z);
        }
        if (s->pose == WORLD_SLEEPING) {
            hand = w3_make(shoulder.x + 0.9f * head + 0.1f, leg, 1.1f * z);
            foot = w3_make(thigh.x + 1.2f * girth, leg, 1.6f * z);
        }
        world__at_region(m, i > 0 ? WORLD_AT_LEG : WORLD_AT_BODY);
        world__limb(m, WORLD__MAIN, 0.06f, shoulder, hand, 1.15f * leg, leg);
        world__at_region(m, WORLD_AT_BODY);
        world__limb(m, WORLD__MAIN, 0.06f, thigh, foot, 1.5f * leg, leg);
    }
    world__at_region(m, WORLD_AT_TAIL);
    w3 root = w3_make(hip.x - 0.75f * girth, hip.y + 0.35f * girth, 0);
    w3 middle = w3_add(root, tail_middle), end = w3_add(root, tail_end);
    world__limb(m, WORLD__MAIN, 0.05f, root, middle, tail, tail);
    world__limb(m, WORLD__THIRD, 0.03f, middle, end, tail, 0.85f * tail);
    world__at_region(m, WORLD_AT_BODY);
    w3 neck_top = w3_make(chest.x + head_dx, chest.y + head_dy, 0);
    world__limb(m, WORLD__MAIN, 0.08f, chest, neck_top, 0.75f * girth, 0.5f * head);
    world__set_head(m, s, neck_top, head, 0);
    world__set_body(m, w3_scale(w3_add(hip, chest), 0.5f), girth);
    if (s->pose != WORLD_STANDING) return;
    m->neck.x -= 0.1f * head;
}

static void world__dog_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    world__four_legs(m, s, 0.21f + 0.09f * g[0], 0.18f + 0.10f * g[1], 0.18f + 0.045f * g[2],
                     0.23f + 0.04f * g[3], w3_make(-0.08f, 0.12f, 0),
                     w3_make(-0.12f, 0.22f + 0.08f * g[6], 0), 0.05f);
}

static void world__cat_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    world__four_legs(m, s, 0.21f + 0.07f * g[0], 0.17f + 0.06f * g[1], 0.155f + 0.035f * g[2],
                     0.22f + 0.035f * g[3], w3_make(-0.14f, 0.16f, 0),
                     w3_make(-0.10f + 0.14f * g[6], 0.46f + 0.08f * g[7], 0), 0.05f);
}

static void world__duck_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    int low = s->pose == WORLD_SITTING || s->pose == WORLD_SLEEPING || s->place == WORLD_POOL;
    float r = 0.30f + 0.05f * g[0], head = 0.21f + 0.04f * g[3];
    float lift = s->pose == WORLD_JUMPING ? 0.26f : 0.0f;
    float y = r * 0.92f + (low ? 0.0f : 0.12f) + lift;
    float neck = s->pose == WORLD_SLEEPING ? 0.15f * r : 0.55f * r + 0.14f * g[1];
    w3 at = w3_make(0, y, 0), head_at = w3_make(0.85f * r, y + neck + head * 1.25f, 0);
    world__ellipsoid(m, WORLD__MAIN, 0.0f, at, w3_make(1.30f * r, 0.92f * r, r));
    world__at_region(m, WORLD_AT_TAIL);
    world__limb(m, WORLD__MAIN, 0.12f, w3_make(-0.8f * r, y + 0.1f, 0),
                w3_make(-1.55f * r, y + 0.55f * r, 0), 0.45f * r, 0.12f * r);
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        if (s->pose == WORLD_JUMPING) /* wings spread */
            world__ellipsoid_tilted(
                m, WORLD__SECOND, 0.03f, w3_make(-0.05f, y + 0.4f * r, 1.4f * r * side),
                w3_make(0.5f * r, 0.16f * r, 0.8f * r), w3_make(0, 1, -0.5f * side));
        else
            world__ellipsoid_tilted(m, WORLD__SECOND, 0.03f,
                                    w3_make(-0.12f, y + 0.12f * r, 0.9f * r * side),
                                    w3_make(0.85f * r, 0.5f * r, 0.22f * r), w3_make(-0.25f, 1, 0));
        world__at_region(m, WORLD_AT_LEG);
        if (low) continue;
        w3 foot = w3_make(0.08f, 0.03f + lift, 0.45f * r * side);
        world__limb(m, WORLD__ORANGE, 0, w3_make(0, y - 0.6f * r, 0.45f * r * side), foot, 0.045f,
                    0.04f);
        world__ellipsoid(m, WORLD__ORANGE, 0, w3_make(foot.x + 0.06f, foot.y, foot.z),
                         w3_make(0.14f, 0.035f, 0.11f));
    }
    world__at_region(m, WORLD_AT_BODY);
    world__limb(m, WORLD__MAIN, 0.12f, w3_make(0.65f * r, y + 0.15f * r, 0), head_at, 0.55f * r,
                0.55f * head);
    world__set_head(m, s, head_at, head, 0);
    world__set_body(m, at, r);
}

static void world__rabbit_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.25f + 0.05f * g[0], head = 0.21f + 0.03f * g[3];
    int upright = s->pose == WORLD_SITTING, asleep = s->pose == WORLD_SLEEPING;
    float lift = s->pose == WORLD_JUMPING ? 0.28f : 0.0f;
    w3 at = w3_make(-0.06f, 1.02f * r + lift, 0);
    float rise = upright ? 1.1f * r : asleep ? 0.0f : 0.35f * r; /* of the chest */
    float reach = upright ? 0.06f : asleep ? 0.14f : 0.16f;      /* of the head  */
    float lifted = asleep ? 0.25f * r + 0.3f * head : 0.75f * r + 0.55f * head;
    w3 chest = w3_make(upright ? 0.08f : 0.22f, at.y + rise, 0);
    w3 head_at = w3_make(chest.x + reach, chest.y + lifted, 0);
    world__ellipsoid(m, WORLD__MAIN, 0.0f, at, w3_make(1.25f * r, 1.02f * r, 1.0f * r));
    world__limb(m, WORLD__MAIN, 0.15f, at, chest, 0.8f * r, 0.7f * r);
    world__limb(m, WORLD__MAIN, 0.1f, chest, head_at, 0.6f * r, 0.5f * head);
    for (int i = -1; i <= 1; i += 2) {
        float z = 0.75f * r * (float)i, back = s->pose == WORLD_JUMPING ? -0.35f : 0.10f;
        world__at_region(m, WORLD_AT_BODY);
        world__ellipsoid(m, WORLD__MAIN, 0.05f, w3_make(at.x - 0.08f, at.y - 0.2f * r, z),
                         w3_make(0.72f * r, 0.75f * r, 0.4f * r));
        world__limb(m, WORLD__SECOND, 0.03f, w3_make(at.x - 0.1f, 0.06f + lift, 1.05f * z),
                    w3_make(at.x + back, 0.06f + lift, 1.05f * z), 0.065f, 0.065f);
        world__at_region(m, i > 0 ? WORLD_AT_LEG : WORLD_AT_BODY);
        w3 paw = w3_make(chest.x + 0.06f, 0.06f, 0.55f * z);
        if (upright) paw = w3_make(chest.x + 0.22f, chest.y - 0.1f, 0.5f * z);
        if (s->pose == WORLD_JUMPING) paw = w3_make(chest.x + 0.28f, at.y - 0.1f, 0.55f * z);
        if (asleep) paw = w3_make(chest.x + 0.22f, 0.06f, 0.7f * z);
        world__limb(m, WORLD__MAIN, 0.05f, w3_make(chest.x, chest.y - 0.2f * r, 0.6f * z), paw,
                    0.075f, 0.06f);
    }
    world__at_region(m, WORLD_AT_TAIL);
    world__ball(m, WORLD__BRIGHT, 0, w3_make(at.x - 1.25f * r, at.y + 0.15f, 0), 0.12f);
    world__set_head(m, s, head_at, head, 0);
    world__set_body(m, at, r);
}

/* A teddy bear: upright, legs forward when it sits. */
static void world__bear_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    int sits = s->pose == WORLD_SITTING || s->pose == WORLD_SLEEPING;
    float r = 0.26f + 0.05f * g[0], head = 0.25f + 0.04f * g[3];
    float lift = s->pose == WORLD_JUMPING ? 0.24f : 0.0f;
    float y = (sits ? 0.02f : 0.16f) + 1.05f * r + lift;
    w3 at = w3_make(0, y, 0);
    world__ellipsoid(m, WORLD__MAIN, 0.0f, at, w3_make(0.88f * r, 1.12f * r, r));
    world__ellipsoid(m, WORLD__SECOND, 0.02f, w3_make(0.28f * r, y - 0.05f * r, 0),
                     w3_make(0.68f * r, 0.78f * r, 0.70f * r));
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        w3 thigh = w3_make(0, y - 0.7f * r, 0.55f * r * side);
        w3 foot = sits ? w3_make(0.36f, 0.10f, 0.24f * side)
                       : w3_make(0.04f, 0.08f + lift, 0.17f * side);
        w3 shoulder = w3_make(0, y + 0.55f * r, 0.75f * r * side);
        w3 hand = w3_make(0.14f, y - 0.15f * r, 1.3f * r * side);
        if (s->pose == WORLD_JUMPING) hand = w3_make(0.05f, y + 1.1f * r, 1.5f * r * side);
        world__at_region(m, i > 0 ? WORLD_AT_LEG : WORLD_AT_BODY);
        world__limb(m, WORLD__MAIN, 0.05f, thigh, foot, 0.12f, 0.11f);
        world__ellipsoid(m, WORLD__THIRD, 0, w3_make(foot.x + 0.04f, foot.y - 0.01f, foot.z),
                         w3_make(0.09f, 0.085f, 0.085f));
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__limb(m, WORLD__MAIN, 0.05f, shoulder, hand, 0.10f, 0.09f);
    }
    world__at_region(m, WORLD_AT_TAIL);
    world__ball(m, WORLD__MAIN, 0.03f, w3_make(-0.9f * r, y - 0.55f * r, 0), 0.08f);
    float nod = s->pose == WORLD_SLEEPING ? -0.35f : 0.0f;
    world__set_head(m, s, w3_make(0.03f, y + 0.95f * r + 0.75f * head, 0), head, nod);
    world__set_body(m, at, r);
}

static void world__owl_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.28f + 0.05f * g[0], tall = 0.36f + 0.06f * g[1], head = 0.27f + 0.04f * g[3];
    float lift = s->pose == WORLD_JUMPING ? 0.26f : 0.0f;
    float y = tall + lift + (s->pose == WORLD_SITTING ? -0.06f : 0.03f);
    w3 at = w3_make(0, y, 0);
    world__ellipsoid(m, WORLD__MAIN, 0.0f, at, w3_make(0.92f * r, tall, r));
    world__ellipsoid(m, WORLD__SECOND, 0.02f, w3_make(0.30f * r, y - 0.05f, 0),
                     w3_make(0.72f * r, 0.80f * tall, 0.74f * r));
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        if (s->pose == WORLD_JUMPING)
            world__ellipsoid_tilted(m, WORLD__THIRD, 0.03f,
                                    w3_make(-0.05f, y + 0.16f, 1.55f * r * side),
                                    w3_make(0.22f, 0.07f, 0.28f), w3_make(0, 1, -0.7f * side));
        else
            world__ellipsoid_tilted(m, WORLD__THIRD, 0.03f, w3_make(-0.06f, y, 0.95f * r * side),
                                    w3_make(0.62f * r, 0.80f * tall, 0.22f * r),
                                    w3_make(-0.3f, 1, 0));
        world__at_region(m, WORLD_AT_LEG);
        world__ellipsoid(m, WORLD__ORANGE, 0, w3_make(0.18f, 0.045f + lift, 0.14f * side),
                         w3_make(0.14f, 0.05f, 0.10f));
    }
    world__at_region(m, WORLD_AT_TAIL);
    world__limb(m, WORLD__MAIN, 0.08f, w3_make(-0.5f * r, y - 0.4f * tall, 0),
                w3_make(-1.15f * r, lift + 0.08f, 0), 0.12f, 0.09f);
    float nod = s->pose == WORLD_SLEEPING ? -0.3f : 0.0f;
    world__set_head(m, s, w3_make(0.03f, y + 0.72f * tall + 0.6f * head, 0), head, nod);
    world__set_body(m, at, r);
}

static void world__turtle_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.42f + 0.04f * g[0], tall = 0.48f + 0.12f * g[1], head = 0.19f + 0.03f * g[3];
    int asleep = s->pose == WORLD_SLEEPING, low = asleep || s->pose == WORLD_SITTING;
    float lift = s->pose == WORLD_JUMPING ? 0.24f : 0.0f;
    float y = (low ? 0.10f : 0.20f) + lift;
    w3 at = w3_make(-0.05f, y + 0.12f, 0);
    w3 head_at = w3_make(r + 0.12f, y + (asleep ? 0.12f : 0.30f + 0.12f * g[4]), 0);
    world__at_region(m, WORLD_AT_TRIM); /* skin */
    for (int i = -1; i <= 1; i += 2) {
        float z = 0.62f * r * (float)i, out = s->pose == WORLD_JUMPING ? 0.16f : 0.03f;
        world__limb(m, WORLD__SECOND, 0, w3_make(0.5f * r, y + 0.05f, z),
                    w3_make(0.5f * r + out, 0.09f + lift, 1.15f * z), 0.12f, 0.10f);
        world__limb(m, WORLD__SECOND, 0, w3_make(-0.6f * r, y + 0.05f, z),
                    w3_make(-0.6f * r - out, 0.09f + lift, 1.15f * z), 0.12f, 0.10f);
    }
    world__limb(m, WORLD__SECOND, 0, w3_make(0.4f * r, y + 0.1f, 0), head_at, 0.13f, 0.55f * head);
    world__at_region(m, WORLD_AT_TAIL);
    world__limb(m, WORLD__SECOND, 0, w3_make(-0.8f * r, y + 0.06f, 0),
                w3_make(-1.3f * r, y - 0.04f, 0), 0.08f, 0.03f);
    world__at_region(m, WORLD_AT_BODY);
    world__ellipsoid(m, WORLD__MAIN, 0, w3_make(at.x, y + 0.10f, 0), w3_make(r, tall, 0.95f * r));
    world__ellipsoid(m, WORLD__THIRD, 0.02f, w3_make(at.x, y + 0.07f, 0),
                     w3_make(1.13f * r, 0.11f, 1.08f * r));
    world__set_head(m, s, head_at, head, 0);
    m->neck = w3_make(head_at.x - 0.9f * head, head_at.y - 0.7f * head, 0);
    world__set_body(m, w3_make(at.x, y + 0.25f, 0), 0.85f * r);
}

static void world__car_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float length = 0.50f + 0.06f * g[0], wide = 0.33f + 0.04f * g[1];
    float wheel = 0.155f + 0.03f * g[2], low = 0.15f + 0.03f * g[3];
    float cabin = 0.28f + 0.08f * g[4], cabin_x = -0.06f - 0.08f * g[5];
    float hood = 0.12f + 2.0f * low, roof = hood + 0.32f + 0.06f * g[6];
    world__box(m, WORLD__MAIN, 0.0f, w3_make(0, 0.12f + low, 0), w3_make(length, low, wide), 0.10f);
    world__box(m, WORLD__MAIN, 0.04f, w3_make(cabin_x, 0.5f * (hood + roof) - 0.05f, 0),
               w3_make(cabin, 0.5f * (roof - hood) + 0.05f, 0.86f * wide), 0.09f);
    w3 pane = w3_make(cabin_x, hood + 0.5f * (roof - hood) - 0.02f, 0);
    float pane_height = 0.5f * (roof - hood) - 0.065f;
    world__box(m, WORLD__GLASS, 0, pane,
               w3_make(cabin - 0.07f, pane_height, 0.86f * wide + 0.008f), 0.01f);
    world__box(m, WORLD__GLASS, 0, pane,
               w3_make(cabin + 0.008f, pane_height, 0.86f * wide - 0.06f), 0.01f);
    world__at_region(m, WORLD_AT_TRIM);
    for (int i = -1; i <= 1; i += 2) {
        float z = (float)i * wide;
        for (int j = -1; j <= 1; j += 2) {
            float x = 0.60f * length * (float)j;
            world__cone(m, WORLD__DARK, 0, w3_make(x, wheel, 0.62f * z),
                        w3_make(x, wheel, 1.12f * z), wheel, wheel, 0.03f);
            world__cone(m, WORLD__METAL, 0, w3_make(x, wheel, 1.0f * z),
                        w3_make(x, wheel, 1.15f * z), 0.5f * wheel, 0.4f * wheel, 0.01f);
        }
        world__ball(m, WORLD__LAMP, 0, w3_make(length - 0.02f, 0.16f + low, 0.66f * z), 0.085f);
        world__box(m, WORLD__MOUTH, 0, w3_make(-length, 0.17f + low, 0.70f * z),
                   w3_make(0.03f, 0.05f, 0.07f), 0.02f);
    }
    for (int j = -1; j <= 1; j += 2)
        world__box(m, WORLD__SECOND, 0, w3_make((float)j * length, 0.15f, 0),
                   w3_make(0.05f, 0.05f, 0.92f * wide), 0.03f);
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 0.13f + low, 0), 0.30f);
    world__thing_anchors(m, s, w3_make(cabin_x, roof, 0), 0.24f, w3_make(cabin_x, hood + 0.02f, 0),
                         0.36f, w3_make(length + 0.03f, 0.17f + low, 0), 0.27f);
}

static void world__mug_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.33f + 0.06f * g[0], tall = 0.70f + 0.18f * g[1], waist = 0.85f + 0.2f * g[2];
    float flare = 0.95f + 0.17f * g[3], ring = 0.18f + 0.05f * g[4];
    float radius[5] = {r * waist * 0.97f, r * waist, r * (0.3f + 0.7f * waist), r, r * flare};
    world__at_region(m, WORLD_AT_TAIL);
    w3 out = w3_make(-0.5f, 0, 0.866f); /* the handle: back and left, to be seen from the front */
    w3 handle = w3_add(w3_scale(out, r + 0.45f * ring), w3_make(0, 0.5f * tall, 0));
    world__torus(m, WORLD__THIRD, 0, handle, w3_make(out.z, 0, -out.x), ring,
                 0.055f + 0.015f * g[5]);
    world__at_region(m, WORLD_AT_BODY);
    world__lathe(m, WORLD__MAIN, 0.03f, w3_make(0, 0, 0), tall, radius, 0.05f);
    world__cone(m, WORLD__COFFEE, 0, w3_make(0, 0.5f * tall, 0), w3_make(0, 0.82f * tall, 0),
                radius[2] - 0.04f, radius[3] - 0.035f, 0.01f);
    world__at_region(m, WORLD_AT_TRIM);
    world__torus(m, WORLD__SECOND, 0, w3_make(0, tall, 0), w3_make(0, 1, 0), r * flare - 0.02f,
                 0.035f);
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 0.47f * tall, 0), r);
    world__thing_anchors(m, s, w3_make(0, tall + 0.01f, 0), 0.9f * r,
                         w3_make(0, 0.22f * tall, 0), r * waist + 0.02f,
                         w3_make(r + 0.02f, 0.62f * tall, 0), 0.75f * r);
}

static void world__teapot_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.36f + 0.06f * g[0], tall = 0.58f + 0.14f * g[1];
    float radius[5] = {0.70f * r, (0.92f + 0.1f * g[2]) * r, r, (0.78f + 0.12f * g[3]) * r,
                       0.50f * r};
    float spout = 0.80f * tall + 0.15f * g[4];
    world__lathe(m, WORLD__MAIN, 0.0f, w3_make(0, 0, 0), tall, radius, 0);
    world__at_region(m, WORLD_AT_RIGHT); /* spout */
    world__limb(m, WORLD__MAIN, 0.06f, w3_make(0.75f * r, 0.35f * tall, 0),
                w3_make(r + 0.16f, 0.62f * tall, 0), 0.13f, 0.085f);
    world__limb(m, WORLD__SECOND, 0.03f, w3_make(r + 0.16f, 0.62f * tall, 0),
                w3_make(r + 0.28f, spout, 0), 0.08f, 0.06f);
    world__at_region(m, WORLD_AT_TAIL); /* handle */
    float ring = 0.20f + 0.03f * g[5];
    world__torus(m, WORLD__THIRD, 0.02f, w3_make(-r - 0.35f * ring, 0.55f * tall, 0),
                 w3_make(0, 0, 1), ring, 0.05f);
    world__at_region(m, WORLD_AT_TRIM); /* lid */
    world__ellipsoid(m, WORLD__SECOND, 0, w3_make(0, tall - 0.01f, 0),
                     w3_make(0.6f * r, 0.1f, 0.6f * r));
    if (s->head < 0)
        world__ball(m, WORLD__THIRD, 0, w3_make(0, tall + 0.13f, 0), 0.075f + 0.02f * g[6]);
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 0.48f * tall, 0), r);
    world__thing_anchors(m, s, w3_make(0, tall + 0.08f, 0), 0.26f, w3_make(0, 0.86f * tall, 0),
                         0.72f * r, w3_make(0.98f * r, 0.78f * tall, 0), 0.75f * r);
}

static void world__robot_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float wide = 0.23f + 0.06f * g[0], tall = 0.19f + 0.06f * g[1], leg = 0.14f + 0.08f * g[2];
    float y = leg + 0.04f + tall;
    world__box(m, WORLD__MAIN, 0.0f, w3_make(0, y, 0), w3_make(0.18f, tall, wide), 0.05f);
    world__box(m, WORLD__SECOND, 0, w3_make(0.18f, y + 0.02f, 0),
               w3_make(0.03f, 0.6f * tall, 0.65f * wide), 0.02f);
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        w3 elbow = w3_make(0.03f, y - 0.15f * tall, (wide + 0.13f) * side);
        w3 hand = w3_make(0.16f, y - 0.6f * tall, (wide + 0.13f) * side);
        world__at_region(m, WORLD_AT_LEG);
        world__cone(m, WORLD__METAL, 0, w3_make(0, 0.05f, 0.5f * wide * side),
                    w3_make(0, leg + 0.08f, 0.5f * wide * side), 0.06f, 0.06f, 0.01f);
        world__box(m, WORLD__THIRD, 0, w3_make(0.05f, 0.055f, 0.55f * wide * side),
                   w3_make(0.15f, 0.055f, 0.095f), 0.04f);
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__limb(m, WORLD__METAL, 0, w3_make(0, y + 0.6f * tall, wide * side), elbow, 0.06f,
                    0.05f);
        world__limb(m, WORLD__METAL, 0, elbow, hand, 0.05f, 0.05f);
        world__ball(m, WORLD__THIRD, 0, hand, 0.085f);
        world__at_region(m, WORLD_AT_TRIM);
        world__ball(m, i > 0 ? WORLD__LAMP : WORLD__MOUTH, 0,
                    w3_make(0.21f, y + 0.25f * tall, 0.3f * wide * side), 0.045f);
    }
    world__at_region(m, WORLD_AT_BODY);
    world__box(m, WORLD__METAL, 0, w3_make(-0.2f, y, 0), w3_make(0.06f, 0.6f * tall, 0.6f * wide),
               0.03f); /* the battery on its back */
    float head = 0.22f + 0.04f * g[4];
    world__cone(m, WORLD__METAL, 0, w3_make(0, y + tall - 0.02f, 0),
                w3_make(0, y + tall + 0.08f, 0), 0.07f, 0.07f, 0.01f);
    world__set_head(m, s, w3_make(0, y + tall + 0.05f + 0.75f * head, 0), head, 0);
    m->neck = w3_make(0, y + tall + 0.02f, 0);
    m->neck_size = 0.75f * wide;
    world__set_body(m, w3_make(0, y, 0), wide);
}

static void world__boot_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float wide = 0.165f + 0.03f * g[0], tall = 0.66f + 0.22f * g[1], shaft = 0.185f + 0.035f * g[2];
    float toe = 0.36f + 0.07f * g[3], sole = 0.045f + 0.03f * g[4];
    w3 ankle = w3_make(-0.16f, 0.28f, 0), opening = w3_make(-0.19f, tall, 0);
    world__limb(m, WORLD__MAIN, 0.0f, w3_make(-0.14f, sole + wide, 0),
                w3_make(toe - 0.08f, sole + 0.9f * wide, 0), 1.05f * wide, wide);
    world__cone(m, WORLD__MAIN, 0.14f, w3_make(-0.16f, 0.18f, 0), opening, shaft, shaft * 1.12f,
                0.02f);
    world__at_region(m, WORLD_AT_TRIM);
    world__box(m, WORLD__SECOND, 0, w3_make(0.5f * (toe - 0.22f), sole, 0),
               w3_make(0.5f * (toe + 0.36f), sole, 1.12f * wide), 0.04f);
    world__box(m, WORLD__SECOND, 0, w3_make(-0.24f, 0.75f * sole + 0.01f, 0),
               w3_make(0.12f, 0.75f * sole + 0.02f, 1.14f * wide), 0.03f); /* heel */
    world__torus(m, WORLD__SECOND, 0, opening, w3_make(0, 1, 0), shaft * 1.10f, 0.055f);
    world__cone(m, WORLD__DARK, 0, w3_make(-0.19f, tall - 0.05f, 0),
                w3_make(-0.19f, tall + 0.015f, 0), shaft * 1.05f, shaft * 1.05f,
                0.01f);           /* the dark inside */
    for (int i = 0; i < 3; i++) { /* laces */
        float y = 0.34f + 0.10f * (float)i, x = ankle.x + shaft + 0.075f - 0.050f * (float)i;
        world__limb(m, WORLD__THIRD, 0, w3_make(x, y, -0.10f), w3_make(x, y + 0.015f, 0.10f),
                    0.028f, 0.028f);
    }
    world__at_region(m, WORLD_AT_TAIL); /* the loop at its back */
    world__torus(m, WORLD__THIRD, 0, w3_make(-0.19f - 1.12f * shaft, tall - 0.06f, 0),
                 w3_make(0, 0, 1), 0.075f, 0.026f);
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(-0.17f, 0.56f * tall, 0), 1.2f * shaft);
    world__thing_anchors(m, s, w3_make(-0.19f, tall + 0.03f, 0), 0.24f,
                         w3_make(-0.18f, 0.66f * tall, 0), shaft * 1.06f,
                         w3_make(toe - 0.02f, sole + 1.75f * wide, 0), 0.9f * wide);
}

static void world__backpack_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float tall = 0.42f + 0.06f * g[0], wide = 0.29f + 0.06f * g[1], deep = 0.17f + 0.03f * g[2];
    float pocket = 0.40f + 0.12f * g[3];
    world__box(m, WORLD__MAIN, 0.0f, w3_make(0, tall, 0), w3_make(deep, tall, wide), 0.14f);
    world__at_region(m, WORLD_AT_TRIM);
    world__box(m, WORLD__SECOND, 0.02f, w3_make(deep + 0.02f, 0.62f * tall, 0),
               w3_make(0.09f, pocket * tall, 0.72f * wide), 0.06f);
    world__limb(m, WORLD__THIRD, 0,
                w3_make(deep + 0.09f, (0.62f + 0.6f * pocket) * tall, -0.5f * wide),
                w3_make(deep + 0.09f, (0.62f + 0.6f * pocket) * tall, 0.5f * wide), 0.028f, 0.028f);
    world__limb(m, WORLD__THIRD, 0, w3_make(deep - 0.01f, 1.55f * tall, -0.8f * wide),
                w3_make(deep - 0.01f, 1.55f * tall, 0.8f * wide), 0.03f, 0.03f);
    for (int i = -1; i <= 1; i += 2) {
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_RIGHT);
        world__box(m, WORLD__SECOND, 0, w3_make(0, 0.5f * tall, (wide + 0.03f) * side),
                   w3_make(0.11f, 0.32f * tall, 0.06f), 0.05f);
        world__at_region(m, WORLD_AT_TRIM); /* straps */
        w3 top = w3_make(-deep, 1.72f * tall, 0.45f * wide * side);
        w3 middle = w3_make(-deep - 0.13f, 1.1f * tall, 0.55f * wide * side);
        world__limb(m, WORLD__THIRD, 0, top, middle, 0.05f, 0.05f);
        world__limb(m, WORLD__THIRD, 0, middle, w3_make(-deep, 0.3f * tall, 0.65f * wide * side),
                    0.05f, 0.04f);
    }
    world__at_region(m, WORLD_AT_TAIL); /* handle */
    world__torus(m, WORLD__THIRD, 0, w3_make(-0.02f, 2.0f * tall, 0), w3_make(1, 0, 0), 0.10f,
                 0.032f);
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 1.35f * tall, 0), 0.8f * wide);
    m->label_size = 0.17f;
    world__thing_anchors(m, s, w3_make(0, 2.0f * tall - 0.01f, 0), 0.24f,
                         w3_make(0, 1.62f * tall, 0), 0.80f * wide,
                         w3_make(deep + 0.02f, 1.5f * tall, 0), 0.75f * wide);
}

static void world__vase_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float tall = 0.66f + 0.16f * g[0];
    float radius[5] = {0.16f + 0.06f * g[1], 0.28f + 0.08f * g[2], 0.25f + 0.10f * g[3],
                       0.13f + 0.04f * g[4], 0.18f + 0.07f * g[5]};
    world__lathe(m, WORLD__MAIN, 0.0f, w3_make(0, 0, 0), tall, radius, 0.04f);
    world__at_region(m, WORLD_AT_TRIM);
    world__torus(m, WORLD__SECOND, 0, w3_make(0, 0.76f * tall, 0), w3_make(0, 1, 0), radius[3],
                 0.035f);
    world__torus(m, WORLD__SECOND, 0, w3_make(0, 0.03f, 0), w3_make(0, 1, 0), radius[0], 0.035f);
    world__at_region(m, WORLD_AT_RIGHT); /* a medallion on its front */
    world__ellipsoid(m, WORLD__THIRD, 0, w3_make(radius[1] - 0.03f, 0.3f * tall, 0),
                     w3_make(0.06f, 0.12f, 0.12f));
    world__at_region(m, WORLD_AT_TAIL); /* and a handle at its back */
    world__torus(m, WORLD__SECOND, 0.02f, w3_make(-radius[3] - 0.07f, 0.64f * tall, 0),
                 w3_make(0, 0, 1), 0.12f, 0.035f);
    world__at_region(m, WORLD_AT_LEFT); /* flowers */
    for (int i = 0; i < 3 && s->head < 0 && s->accessory != WORLD_HAT; i++) {
        float angle = 2.1f * (float)i + 0.6f, lean = 0.14f + 0.03f * g[6];
        float high = tall + 0.22f + 0.05f * (float)i;
        w3 bloom = w3_make(lean * cosf(angle), high, lean * 1.2f * sinf(angle));
        world__limb(m, WORLD__STEM, 0, w3_make(0, 0.6f * tall, 0), bloom, 0.022f, 0.022f);
        world__ellipsoid(m, WORLD__THIRD, 0, bloom, w3_make(0.12f, 0.085f, 0.12f));
        world__ball(m, WORLD__LAMP, 0, w3_add(bloom, w3_make(0.02f, 0.06f, 0)), 0.055f);
    }
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 0.35f * tall, 0), 0.28f);
    world__thing_anchors(m, s, w3_make(0, tall, 0), 0.24f, w3_make(0, 0.72f * tall, 0),
                         radius[3] + 0.03f, w3_make(radius[2] + 0.05f, 0.56f * tall, 0), 0.24f);
}

/* An alarm clock with two bells. */
static void world__clock_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.36f + 0.05f * g[0], deep = 0.12f + 0.05f * g[1], y = r + 0.10f;
    world__cone(m, WORLD__MAIN, 0.0f, w3_make(-deep, y, 0), w3_make(deep, y, 0), 0.93f * r, r,
                0.05f);
    world__at_region(m, WORLD_AT_TRIM);
    world__torus(m, WORLD__MAIN, 0, w3_make(deep, y, 0), w3_make(1, 0, 0), 0.93f * r, 0.065f);
    world__at_region(m, WORLD_AT_RIGHT); /* the face */
    world__cone(m, WORLD__BRIGHT, 0, w3_make(deep - 0.02f, y, 0), w3_make(deep + 0.02f, y, 0),
                0.88f * r, 0.88f * r, 0.005f);
    float hour = 6.2832f * g[2], minute = 6.2832f * g[3], x = deep + 0.035f;
    world__limb(m, WORLD__DARK, 0, w3_make(x, y, 0),
                w3_make(x, y + 0.45f * r * cosf(hour), 0.45f * r * sinf(hour)), 0.035f, 0.035f);
    world__limb(m, WORLD__DARK, 0, w3_make(x, y, 0),
                w3_make(x, y + 0.70f * r * cosf(minute), 0.70f * r * sinf(minute)), 0.028f, 0.024f);
    for (int i = 0; i < 12; i += 3) {
        float angle = 0.5236f * (float)i;
        world__ball(m, WORLD__DARK, 0,
                    w3_make(deep + 0.015f, y + 0.72f * r * cosf(angle), 0.72f * r * sinf(angle)),
                    0.032f);
    }
    for (int i = -1; i <= 1; i += 2) { /* bells and feet */
        float side = (float)i;
        world__at_region(m, i > 0 ? WORLD_AT_LEFT : WORLD_AT_TRIM);
        world__ellipsoid_tilted(m, WORLD__THIRD, 0, w3_make(0, y + 1.0f * r, 0.58f * r * side),
                                w3_make(0.15f, 0.12f, 0.15f), w3_make(0, 1, 0.5f * side));
        world__at_region(m, WORLD_AT_LEG);
        world__limb(m, WORLD__SECOND, 0, w3_make(0, y - 0.75f * r, 0.55f * r * side),
                    w3_make(0, 0.05f, 0.82f * r * side), 0.055f, 0.05f);
    }
    world__at_region(m, WORLD_AT_TAIL); /* handle above, key behind */
    if (s->head < 0)
        world__torus(m, WORLD__METAL, 0, w3_make(0, y + 1.1f * r, 0), w3_make(1, 0, 0), 0.15f,
                     0.03f);
    world__limb(m, WORLD__METAL, 0, w3_make(-deep, y, 0), w3_make(-deep - 0.10f, y, 0), 0.03f,
                0.03f);
    world__ellipsoid(m, WORLD__METAL, 0, w3_make(-deep - 0.12f, y, 0),
                     w3_make(0.03f, 0.07f, 0.13f));
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, y, 0), r);
    m->label_size = 0.2f;
    world__thing_anchors(m, s, w3_make(0, y + 1.0f * r + 0.10f, 0), 0.25f,
                         w3_make(0, y - 0.72f * r, 0), 0.74f * r,
                         w3_make(deep + 0.06f, y + 0.3f * r, 0), 0.8f * r);
}

static void world__candle_body(world__model *m, const world_scene *s)
{
    const float *g = s->shape;
    float r = 0.17f + 0.05f * g[0], tall = 0.60f + 0.18f * g[1], dish = 0.32f + 0.06f * g[2];
    float radius[5] = {0.75f * dish, 0.9f * dish, dish, 1.05f * dish, 1.1f * dish};
    world__at_region(m, WORLD_AT_TRIM);
    world__lathe(m, WORLD__SECOND, 0, w3_make(0, 0, 0), 0.12f, radius, 0.04f);
    world__at_region(m, WORLD_AT_TAIL);
    world__torus(m, WORLD__SECOND, 0, w3_make(-1.1f * dish - 0.06f, 0.11f, 0), w3_make(0, 0, 1),
                 0.095f, 0.035f);
    world__at_region(m, WORLD_AT_BODY);
    world__cone(m, WORLD__MAIN, 0.0f, w3_make(0, 0.03f, 0), w3_make(0, tall, 0), 1.02f * r,
                0.97f * r, 0.035f);
    for (int i = 0; i < 3; i++) { /* wax running down its front */
        float angle = 0.9f * (float)(i - 1) + 0.5f * (g[3] - 0.5f), end = 0.45f + 0.2f * g[4 + i];
        w3 top = w3_make(0.93f * r * cosf(angle), tall - 0.02f, 0.93f * r * sinf(angle));
        w3 low = w3_make(1.0f * r * cosf(angle), end * tall, 1.0f * r * sinf(angle));
        world__limb(m, WORLD__THIRD, 0.02f, top, low, 0.045f, 0.055f);
    }
    if (s->head < 0 && s->accessory != WORLD_HAT && s->accessory != WORLD_CROWN
        && s->accessory != WORLD_BOW) {
        world__at_region(m, WORLD_AT_LEFT);
        world__limb(m, WORLD__DARK, 0, w3_make(0, tall, 0), w3_make(0, tall + 0.09f, 0), 0.02f,
                    0.02f);
        world__ellipsoid(m, WORLD__FLAME, 0.0f, w3_make(0, tall + 0.16f, 0),
                         w3_make(0.08f, 0.11f, 0.08f));
        world__cone(m, WORLD__FLAME, 0.06f, w3_make(0, tall + 0.18f, 0),
                    w3_make(0, tall + 0.36f, 0), 0.07f, 0.01f, 0.01f);
    }
    world__at_region(m, WORLD_AT_BODY);
    world__set_body(m, w3_make(0, 0.45f * tall, 0), 1.2f * r);
    m->label_size = 0.8f * r;
    world__thing_anchors(m, s, w3_make(0, tall, 0), 0.22f, w3_make(0, 0.60f * tall, 0), r + 0.02f,
                         w3_make(r + 0.05f, 0.74f * tall, 0), 0.95f * r);
}

typedef void world__builder(world__model *m, const world_scene *s);
static world__builder *const world__bodies[WORLD_CLASSES] = {
    world__dog_body, world__cat_body, world__car_body, world__duck_body, world__mug_body,
    world__teapot_body, world__rabbit_body, world__robot_body, world__boot_body,
    world__backpack_body, world__bear_body, world__vase_body, world__clock_body,
    world__turtle_body, world__candle_body, world__owl_body};
static world__builder *const world__heads[WORLD_CLASSES] = {
    world__dog_head, world__cat_head, NULL, world__duck_head, NULL, NULL, world__rabbit_head,
    world__robot_head, NULL, NULL, world__bear_head, NULL, NULL, world__turtle_head, NULL,
    world__owl_head};

/* Accessories are built in object space at the anchors. */
static void world__add_accessory(world__model *m, const world_scene *s)
{
    float r = m->top_size, n = m->neck_size, f = m->face_size;
    w3 up = w3_make(0, 1, 0);
    m->frame = world__frame_make(m->top, s->head_yaw, 0, 1.0f);
    switch (s->accessory) {
    case WORLD_HAT: /* a top hat with a band */
        world__cone(m, WORLD__ACCESSORY, 0, w3_make(0, -0.01f, 0), w3_make(0, 0.05f, 0), 1.25f * r,
                    1.25f * r, 0.02f);
        world__cone(m, WORLD__ACCESSORY, 0, w3_make(0, 0, 0), w3_make(0, 1.25f * r, 0), 0.72f * r,
                    0.80f * r, 0.02f);
        world__cone(m, WORLD__BRIGHT, 0, w3_make(0, 0.05f, 0), w3_make(0, 0.05f + 0.28f * r, 0),
                    0.77f * r, 0.79f * r, 0.01f);
        break;
    case WORLD_CROWN:
        world__torus(m, WORLD__GOLD, 0, w3_make(0, 0.04f, 0), up, 0.75f * r, 0.07f * r + 0.02f);
        world__cone(m, WORLD__GOLD, 0, w3_make(0, 0.02f, 0), w3_make(0, 0.3f * r, 0), 0.72f * r,
                    0.78f * r, 0.01f);
        for (int i = 0; i < 6; i++) {
            float x = 0.72f * r * cosf(1.0472f * (float)i),
                  z = 0.72f * r * sinf(1.0472f * (float)i);
            world__cone(m, WORLD__GOLD, 0, w3_make(x, 0.2f * r, z),
                        w3_make(1.25f * x, 0.95f * r, 1.25f * z), 0.27f * r, 0.02f, 0.015f);
        }
        break;
    case WORLD_BOW:
        for (int i = -1; i <= 1; i += 2) { /* turned a little, to be seen from the side too */
            w3 end = w3_make((0.1f - 0.55f * (float)i) * r, 0.5f * r, 0.92f * r * (float)i);
            world__cone(m, WORLD__ACCESSORY, 0, w3_make(0.1f * r, 0.35f * r, 0), end, 0.10f * r,
                        0.58f * r, 0.04f);
        }
        world__ball(m, WORLD__ACCESSORY, 0, w3_make(0.14f * r, 0.37f * r, 0), 0.27f * r);
        break;
    case WORLD_SCARF:
        m->frame = world__frame_make(m->neck, 0, 0, 1.0f);
        world__torus(m, WORLD__ACCESSORY, 0, w3_make(0, 0, 0), up, n, 0.06f + 0.16f * n);
        world__limb(m, WORLD__ACCESSORY, 0, w3_make(1.05f * n, 0, 0.45f * n),
                    w3_make(1.25f * n + 0.04f, -0.30f, 0.55f * n), 0.075f, 0.09f);
        break;
    case WORLD_SUNGLASSES:
        m->frame = world__frame_make(m->face, s->head_yaw, 0, 1.0f);
        for (int i = -1; i <= 1; i += 2) {
            world__ellipsoid(m, WORLD__DARK, 0, w3_make(0, 0, 0.47f * f * (float)i),
                             w3_make(0.16f * f + 0.02f, 0.36f * f, 0.42f * f));
            world__limb(m, WORLD__DARK, 0, w3_make(0, 0.08f * f, 0.8f * f * (float)i),
                        w3_make(-1.0f * f, 0.12f * f, 1.08f * f * (float)i), 0.05f * f, 0.05f * f);
        }
        world__limb(m, WORLD__DARK, 0, w3_make(0.08f * f, 0.12f * f, -0.3f * f),
                    w3_make(0.08f * f, 0.12f * f, 0.3f * f), 0.07f * f, 0.07f * f);
        break;
    default: break;
    }
}

/* Builds the object of a scene: its body, its head if it has one, what it wears. */
static void world__build(world__model *m, const world_scene *s)
{
    int head = s->head >= 0 ? s->head : s->object;
    memset(m, 0, sizeof *m);
    m->frame = world__frame_make(w3_make(0, 0, 0), 0, 0, 1.0f);
    m->region = WORLD_AT_BODY;
    world__bodies[(int)s->object](m, s);
    if (world__heads[head]) {
        m->frame = m->head;
        world__at_region(m, WORLD_AT_HEAD);
        world__heads[head](m, s);
    }
    world__at_region(m, WORLD_AT_NOWHERE);
    world__add_accessory(m, s);

    w3 low = w3_make(1e9f, 1e9f, 1e9f), high = w3_make(-1e9f, -1e9f, -1e9f);
    for (int i = 0; i < m->n; i++) {
        const world__part *p = &m->part[i];
        low = w3_make(world__min(low.x, p->middle.x - p->radius),
                      world__min(low.y, p->middle.y - p->radius),
                      world__min(low.z, p->middle.z - p->radius));
        high = w3_make(world__max(high.x, p->middle.x + p->radius),
                       world__max(high.y, p->middle.y + p->radius),
                       world__max(high.z, p->middle.z + p->radius));
    }
    m->middle = w3_scale(w3_add(low, high), 0.5f);
    for (int i = 0; i < m->n; i++) {
        float reach = w3_length(w3_sub(m->part[i].middle, m->middle)) + m->part[i].radius;
        m->radius = world__max(m->radius, reach);
    }
}

/* ---- [W-8] Places ------------------------------------------------------------------------- */

/* Light of a place. Colours are sRGB, 0xrrggbb; sun and sky are what a white surface facing them
   shows, ground is its plain colour, which also lights from below. */
typedef struct world__light {
    uint32_t sun, sky, ground;
    uint32_t shadow; /* what a shadow multiplies the ground by                       */
    float sink;      /* height of the ground or water over the object's foot         */
} world__light;

static const world__light world__lights[WORLD_PLACES] = {
    /*            sun       sky       ground    shadow    sink */
    /* beach   */ {0xfff5e0, 0xa8b8cc, 0xebd4a3, 0xa8a3ad, .01f},
    /* snow    */ {0xfaf7f2, 0xb8c2d6, 0xebf2fc, 0xa8bddb, .03f},
    /* grass   */ {0xfff7e0, 0xa3b2c2, 0x6ba840, 0x85948c, .02f},
    /* desert  */ {0xffebc7, 0xb2a8a8, 0xe69e57, 0x9e8a8a, .01f},
    /* night   */ {0xebcca8, 0x7575ad, 0x26263d, 0x8c8ca6, .00f},
    /* table   */ {0xfff2db, 0xada8a3, 0xa1693b, 0x8a8080, .00f},
    /* forest  */ {0xfaf5c7, 0x8fa38a, 0x57572b, 0x8a8f8a, .01f},
    /* cobbles */ {0xfaf2e6, 0xa8adbd, 0x918f8f, 0x8f919e, .00f},
    /* moon    */ {0xfffcf5, 0x6b6e7a, 0xa3a3a8, 0x5c5c66, .01f},
    /* water   */ {0xebfafa, 0x94bdd1, 0x5ca3ad, 0xadbdc7, .01f},
    /* kitchen */ {0xfff7e8, 0xb8b8b8, 0xd6dbd4, 0xa8a8ad, .00f},
    /* carpet  */ {0xffebcc, 0x9e8f94, 0xc2171f, 0x8f8085, .00f},
    /* pool    */ {0xfffaed, 0xadc2d1, 0x5cc7e0, 0xb8ccdb, .13f},
    /* fabric  */ {0xfff5f0, 0xb8adb2, 0xf5a8c2, 0xb89ead, .00f},
};

static w3 world__hex(uint32_t c)
{
    return w3_scale(w3_make((float)(c >> 16 & 255), (float)(c >> 8 & 255), (float)(c & 255)),
                    1.0f / 255.0f);
}
static w3 world__rgb(const float c[3]) { return w3_make(c[0], c[1], c[2]); }
/* A zero-mean ripple of this period that vanishes where it cannot be resolved. */
static float world__ripple(float x, float period, float footprint)
{
    return world__fade(footprint, period) * sinf(6.2832f * x / period);
}
/* Zero-mean grain of this size that vanishes likewise. */
static float world__grain(float x, float y, float size, float footprint)
{
    float amount = world__fade(footprint, 2.0f * size);
    return amount > 0.0f ? amount * (world__noise(x / size, y / size, 7) - 0.5f) : 0.0f;
}
static w3 world__brighter(w3 c, float by) { return w3_scale(c, 1.0f + by); }
/* 1 inside [-half, half], with edges softened over `soft`. */
static float world__inside(float x, float half, float soft)
{
    return world__smoothstep(half + soft, half - soft, fabsf(x));
}

#define WORLD__BOKEH 9
/* Blurred city lights: how much light of which colour at azimuth u, elevation e. If smear, they
   are reflections, stretched along e. */
static w3 world__bokeh(float u, float e, const float *b, int smear)
{
    static const float colors[3][3] = {{1.0f, .76f, .36f}, {1.0f, .50f, .30f}, {.55f, .70f, 1.0f}};
    w3 sum = w3_make(0, 0, 0);
    for (int i = 0; i < WORLD__BOKEH; i++) {
        float at_u = -0.40f + 0.10f * (float)i + 0.05f * (b[0] - 0.5f);
        float at_e = 0.02f + 0.10f * world__fract(0.618f * (float)i + b[1] * 0.3f);
        float radius = 0.022f + 0.012f * world__fract(0.37f * (float)i);
        float du = (u - at_u) / radius, de = smear ? 0.0f : (e - at_e) / radius;
        float light = world__smoothstep(1.15f, 0.85f, sqrtf(du * du + de * de));
        if (light > 0.0f) sum = w3_madd(sum, world__rgb(colors[i % 3]), light);
    }
    return sum;
}

/* The ground's colour (sRGB, in full light) at x to the right of and z behind the object, both as
   the camera sees them. b are the scene's backdrop numbers; fx, fz the pixel's footprint. */
static w3 world__ground(int place, float x, float z, const float *b, float fx, float fz)
{
    w3 c = world__hex(world__lights[place].ground);
    float f = world__max(fx, fz), slow = world__noise(0.7f * x + 9.0f * b[0], 0.7f * z, 1) - 0.5f;
    switch (place) {
    case WORLD_BEACH: {
        float shore = 2.6f + 0.8f * b[1] + 0.2f * sinf(0.9f * x + 6.28f * b[0]);
        w3 wet = w3_make(.76f, .66f, .50f);
        w3 sea = w3_mix(w3_make(.30f, .76f, .78f), w3_make(.10f, .44f, .70f),
                        world__smoothstep(shore, shore + 8.0f, z));
        float wave = world__ripple(z + 0.1f * sinf(3.0f * x), 0.5f, fz);
        c = world__brighter(c, 0.06f * slow + 0.10f * world__grain(x, z, 0.02f, f));
        c = w3_mix(c, wet, world__smoothstep(shore - 0.8f, shore - 0.2f, z));
        c = w3_mix(c, world__brighter(sea, 0.06f * wave),
                   world__smoothstep(shore - .1f, shore + .1f, z));
        return w3_mix(c, w3_make(.97f, .98f, .97f), 0.9f * world__inside(z - shore, 0.14f, 0.12f));
    }
    case WORLD_SNOW:
        return world__brighter(c, 0.05f * slow + 0.06f * world__grain(x, z, 0.025f, f));
    case WORLD_GRASS:
        c = w3_mix(c, w3_make(.52f, .74f, .30f), world__smoothstep(0.0f, 8.0f, z));
        return world__brighter(c, 0.12f * slow + 0.30f * world__grain(x, 0.35f * z, 0.016f, f));
    case WORLD_DESERT: {
        float dune = world__ripple(z + 0.25f * x + 0.1f * sinf(2.0f * x), 0.16f, 2.0f * fz);
        return world__brighter(c, 0.10f * slow + 0.07f * dune);
    }
    case WORLD_NIGHT: {
        float far_away = world__smoothstep(0.0f, 7.0f, z);
        w3 shine = world__bokeh(x / (z + 3.2f), 0, b, 1);
        c = world__brighter(c, 0.2f * slow + 0.25f * world__grain(x, z, 0.02f, f));
        return w3_madd(c, shine, 0.02f + 0.34f * far_away);
    }
    case WORLD_TABLE: {
        float plank = world__fract((x + b[0]) / 0.55f) - 0.5f;
        float tint = world__lattice(world__floor((x + b[0]) / 0.55f), 0, 3) - 0.5f;
        float figure = world__ripple(x + 0.03f * sinf(2.5f * z + 9.0f * tint), 0.045f, fx);
        c = world__brighter(c, 0.14f * tint + 0.08f * slow + 0.06f * figure);
        return w3_mix(w3_scale(c, 0.62f), c,
                      world__smoothstep(0.0f, 0.03f + 0.3f * fx, 0.5f - fabsf(plank)));
    }
    case WORLD_FOREST:
        c = w3_mix(c, w3_make(.30f, .42f, .16f), world__smoothstep(0.35f, 0.65f, slow + 0.5f));
        return world__brighter(c, 0.30f * world__grain(x, z, 0.022f, f));
    case WORLD_COBBLES: {
        float row = (z + b[1]) / 0.24f, shift = world__floor(row) & 1 ? 0.5f : 0.0f;
        float column = (x + b[0]) / 0.30f + shift;
        float dx = (0.5f - fabsf(world__fract(column) - 0.5f)) * 0.30f;
        float dz = (0.5f - fabsf(world__fract(row) - 0.5f)) * 0.24f;
        float joint = world__smoothstep(0.008f, 0.05f, world__min(dx, dz));
        float tint = world__lattice(world__floor(column), world__floor(row), 5) - 0.5f;
        float clear = world__fade(f, 0.5f);
        c = world__brighter(c, clear * 0.16f * tint + 0.06f * slow);
        return w3_scale(c, world__mix(0.92f, world__mix(0.70f, 1.04f, joint), clear));
    }
    case WORLD_MOON: {
        float u = x / 0.95f + b[0], v = z / 0.95f + b[1];
        int i = world__floor(u), j = world__floor(v);
        float cx = 0.35f + 0.3f * world__lattice(i, j, 11);
        float cz = 0.35f + 0.3f * world__lattice(i, j, 12);
        float size = 0.16f + 0.14f * world__lattice(i, j, 13);
        float dx = world__fract(u) - cx, dz = world__fract(v) - cz;
        float r = sqrtf(dx * dx + dz * dz) / size;
        float bowl = world__smoothstep(1.0f, 0.75f, r);
        float rim = world__inside(r - 1.05f, 0.12f, 0.12f);
        float lit = r > 0.0f ? dx / (r * size) : 0.0f;
        float near_by = world__smoothstep(9.0f, 2.0f, z);
        c = world__brighter(c, 0.08f * slow + 0.12f * world__grain(x, z, 0.022f, f));
        return world__brighter(c, near_by * (0.16f * rim - bowl * (0.16f + 0.14f * lit)));
    }
    case WORLD_UNDER_WATER: {
        float a = world__noise(2.2f * x + 5.0f * b[0], 2.2f * z, 2) - 0.5f;
        float line = 1.0f - world__smoothstep(0.0f, 0.12f, fabsf(a));
        float net = world__fade(f, 0.3f) * line - 0.25f;
        c = world__brighter(c, 0.10f * net + 0.08f * world__grain(x, z, 0.02f, f));
        return w3_mix(c, w3_make(.10f, .44f, .62f), world__smoothstep(0.0f, 6.0f, z));
    }
    case WORLD_KITCHEN: {
        float u = x / 0.6f + 0.5f, v = z / 0.6f + 0.5f * b[1];
        float sx = (0.25f - fabsf(world__fract(0.5f * u) - 0.5f)) * 1.2f / (0.3f * fx + 1e-3f);
        float sz = (0.25f - fabsf(world__fract(0.5f * v) - 0.5f)) * 1.2f / (0.3f * fz + 1e-3f);
        float check = 0.5f - 0.5f * world__clamp(sx, -1, 1) * world__clamp(sz, -1, 1);
        return w3_mix(w3_make(.95f, .95f, .92f), w3_make(.62f, .79f, .78f), check);
    }
    case WORLD_CARPET: {
        float half = 1.0f + 0.2f * b[0], soft = 0.01f + 0.3f * fx;
        w3 floor_color = w3_make(.26f, .19f, .22f);
        float border = world__inside(fabsf(x) - half + 0.06f, 0.05f, soft);
        c = world__brighter(c, 0.08f * slow + 0.25f * world__grain(x, z, 0.014f, f));
        c = w3_mix(floor_color, c, world__inside(x, half, soft));
        return w3_mix(c, w3_make(.90f, .70f, .26f), border);
    }
    case WORLD_POOL: {
        float edge = 2.4f + 0.6f * b[1];
        float a = world__noise(2.0f * x + 7.0f * b[0], 2.0f * z, 2) - 0.5f;
        float line = 1.0f - world__smoothstep(0.0f, 0.10f, fabsf(a));
        float net = world__fade(f, 0.4f) * (line - 0.3f);
        w3 deck = w3_make(.90f, .85f, .76f);
        c = w3_mix(c, w3_make(.22f, .66f, .82f), world__smoothstep(-1.0f, edge, z));
        c = world__brighter(c, 0.12f * net);
        c = w3_mix(c, w3_make(.97f, .97f, .96f), world__smoothstep(edge, edge + 0.04f, z));
        return w3_mix(c, deck, world__smoothstep(edge + 0.5f, edge + 0.54f, z));
    }
    default: { /* WORLD_FABRIC */
        float fold = sinf(2.2f * x + 1.4f * z + 6.28f * b[0] + 0.8f * sinf(1.7f * z + 4.0f * b[1]));
        float weave = world__ripple(x, 0.025f, fx) + world__ripple(z, 0.025f, fz);
        return world__brighter(c, 0.05f * fold * fold * fold + 0.02f * weave);
    }
    }
}

/* Distance behind the object of a place's back wall; 0 if outdoors.
   Where the ground ends earlier (a table), the wall is seen below it too. */
static float world__wall_depth(int place)
{
    return place == WORLD_TABLE ? 1.5f : place == WORLD_KITCHEN ? 2.2f
         : place == WORLD_CARPET ? 3.2f : place == WORLD_FABRIC ? 2.6f : 0.0f;
}

/* The wall's colour at x to the right and y above the ground. */
static w3 world__wall(int place, float x, float y, const float *b, float f)
{
    switch (place) {
    case WORLD_TABLE: {
        float sun = world__inside(x - 1.4f * (b[0] - 0.5f) - 0.4f * y, 0.55f, 0.25f);
        w3 c = w3_mix(w3_make(.82f, .75f, .63f), w3_make(.93f, .88f, .78f),
                      world__smoothstep(-1, 2, y));
        return w3_mix(c, w3_make(.99f, .95f, .84f), 0.7f * sun);
    }
    case WORLD_KITCHEN: {
        w3 tiles = w3_make(.98f, .94f, .85f), doors = w3_make(.50f, .68f, .66f);
        float tile_x = 0.5f - fabsf(world__fract(x / 0.25f) - 0.5f);
        float tile_y = 0.5f - fabsf(world__fract(y / 0.25f) - 0.5f);
        float joint = world__smoothstep(0.06f, 0.02f, world__min(tile_x, tile_y));
        float grout = world__fade(f, 0.12f) * joint;
        float seam = 0.5f - fabsf(world__fract((x + b[0]) / 0.9f) - 0.5f);
        float panel = world__smoothstep(0.06f, 0.09f, seam);
        panel *= world__inside(y - 0.42f, 0.30f, 0.02f);
        w3 c = world__brighter(tiles, -0.08f * grout);
        doors = world__brighter(doors, 0.10f * panel - 0.3f * world__smoothstep(0.02f, 0.0f, seam));
        c = w3_mix(doors, c, world__smoothstep(0.84f, 0.86f, y));
        return w3_mix(c, w3_make(.48f, .33f, .24f), world__inside(y - 0.86f, 0.05f, 0.01f));
    }
    case WORLD_CARPET: {
        float fold = sinf(7.0f * x + 6.28f * b[0] + 0.6f * sinf(2.0f * x));
        w3 c = world__brighter(w3_make(.36f, .07f, .16f), 0.30f * fold);
        return w3_mix(w3_scale(c, 0.6f), c, world__smoothstep(0.0f, 0.5f, y));
    }
    default: { /* WORLD_FABRIC */
        float fold = sinf(2.5f * x + 6.28f * b[2] + 0.4f * sinf(1.5f * y));
        w3 c = w3_mix(w3_make(.95f, .66f, .75f), w3_make(.99f, .83f, .87f),
                      world__smoothstep(0, 1.6f, y));
        return world__brighter(c, 0.03f * fold);
    }
    }
}

/* Sky and what stands before it, at azimuth u to the right and elevation e (tangents). */
static w3 world__sky(int place, float u, float e, const float *b)
{
    const float soft = 0.006f;
    switch (place) {
    case WORLD_BEACH: {
        float cloud = world__noise(4.0f * u + 9.0f * b[2], 14.0f * e + 5.0f * b[3], 3);
        w3 c = w3_mix(w3_make(.80f, .92f, .98f), w3_make(.36f, .67f, .95f),
                      world__clamp(3.5f * e, 0, 1));
        return w3_mix(c, w3_make(1, 1, 1), 0.5f * world__smoothstep(0.55f, 0.9f, cloud));
    }
    case WORLD_SNOW: {
        float spike = fabsf(world__fract(11.0f * u + b[2]) - 0.5f) * 2.0f;
        float height = 0.035f + 0.03f * spike + 0.03f * sinf(3.0f * u + 6.28f * b[3]);
        w3 c = w3_mix(w3_make(.88f, .92f, .97f), w3_make(.66f, .78f, .92f),
                      world__clamp(4.0f * e, 0, 1));
        return w3_mix(w3_make(.52f, .64f, .72f), c,
                      world__smoothstep(height - soft, height + soft, e));
    }
    case WORLD_GRASS: {
        float hill = 0.05f + 0.035f * sinf(5.0f * u + 6.28f * b[2]);
        float cloud = world__noise(5.0f * u + 9.0f * b[2], 12.0f * e + 5.0f * b[3], 3);
        w3 c = w3_mix(w3_make(.74f, .89f, .99f), w3_make(.38f, .65f, .95f),
                      world__clamp(3.5f * e, 0, 1));
        c = w3_mix(c, w3_make(1, 1, 1), 0.6f * world__smoothstep(0.55f, 0.9f, cloud));
        return w3_mix(w3_make(.27f, .50f, .24f), c, world__smoothstep(hill - soft, hill + soft, e));
    }
    case WORLD_DESERT: {
        float phase = 4.0f * u + 6.28f * b[2], dune = 0.035f + 0.05f * fabsf(sinf(phase));
        float lit = cosf(phase) * sinf(phase) > 0.0f ? 1.0f : 0.0f;
        w3 c = w3_mix(w3_make(.99f, .90f, .70f), w3_make(.66f, .80f, .90f),
                      world__clamp(3.5f * e, 0, 1));
        w3 sand = w3_mix(w3_make(.74f, .43f, .25f), w3_make(.90f, .60f, .33f), lit);
        return w3_mix(sand, c, world__smoothstep(dune - soft, dune + soft, e));
    }
    case WORLD_NIGHT: {
        float block = world__floor(8.0f * u + b[2]) & 1 ? 0.20f : 0.11f;
        w3 c = w3_mix(w3_make(.25f, .16f, .40f), w3_make(.06f, .06f, .20f),
                      world__clamp(3.0f * e, 0, 1));
        c = w3_mix(w3_make(.09f, .08f, .17f), c, world__smoothstep(block - soft, block + soft, e));
        return w3_madd(c, world__bokeh(u, e, b, 0), 0.75f);
    }
    case WORLD_FOREST: {
        float light = world__noise(5.0f * u + 9.0f * b[2], 6.0f * e, 4);
        w3 c = w3_mix(w3_make(.19f, .33f, .15f), w3_make(.52f, .70f, .34f),
                      world__clamp(2.2f * e + 0.5f * (light - 0.4f), 0, 1));
        for (int i = 0; i < 5; i++) {
            float jitter = world__fract(b[3] + 0.618f * (float)i) - 0.5f;
            float at = -0.36f + 0.18f * (float)i + 0.08f * jitter;
            float half = 0.018f + 0.012f * world__fract(b[0] + 0.37f * (float)i);
            w3 bark = w3_mix(w3_make(.20f, .14f, .10f), w3_make(.36f, .26f, .18f),
                             world__clamp(0.5f + (u - at) / half * 0.5f, 0, 1));
            c = w3_mix(c, bark, world__inside(u - at, half, soft));
        }
        return c;
    }
    case WORLD_COBBLES: {
        static const float fronts[4][3] = {
            {.90f, .72f, .52f}, {.84f, .55f, .45f}, {.94f, .87f, .68f}, {.64f, .73f, .76f}};
        float v = 5.0f * u + 4.0f * b[2];
        int house = world__floor(v);
        float roof = 0.20f + 0.03f * (float)(house & 1), wx = world__fract(3.0f * v) - 0.5f;
        float wy = world__fract(e / 0.085f) - 0.5f;
        float window = world__inside(wx, 0.22f, 0.10f) * world__inside(wy, 0.28f, 0.10f);
        w3 c = w3_mix(world__rgb(fronts[house & 3]), w3_make(.38f, .42f, .50f), 0.75f * window);
        return w3_mix(c, w3_make(.76f, .88f, .97f), world__smoothstep(roof - soft, roof + soft, e));
    }
    case WORLD_MOON: {
        float at_u = b[2] < 0.5f ? -0.19f : 0.19f, du = u - at_u, de = e - 0.065f;
        float r = sqrtf(du * du + de * de) / 0.042f;
        float swirl = world__noise(35.0f * du + 20.0f * b[3], 70.0f * de, 5);
        float star = world__lattice(world__floor(90.0f * u), world__floor(90.0f * e), 17);
        float sx = world__fract(90.0f * u) - 0.5f, se = world__fract(90.0f * e) - 0.5f;
        float glint = star > 0.93f ? world__smoothstep(0.3f, 0.1f, sqrtf(sx * sx + se * se)) : 0.0f;
        w3 earth = w3_mix(w3_make(.16f, .42f, .80f), w3_make(.90f, .95f, .98f),
                          world__smoothstep(0.45f, 0.7f, swirl));
        w3 c = w3_make(.03f + .6f * glint, .03f + .6f * glint, .06f + .6f * glint);
        earth = w3_scale(earth, world__clamp(0.8f - 8.0f * du, 0.25f, 1.0f));
        return w3_mix(earth, c, world__smoothstep(1.0f - 15.0f * soft, 1.0f + 15.0f * soft, r));
    }
    case WORLD_UNDER_WATER: {
        float beam = sinf(16.0f * (u - 0.7f * e) + 6.28f * b[2])
                     * sinf(7.0f * (u - 0.7f * e) + 6.28f * b[3]);
        w3 c = w3_mix(w3_make(.10f, .44f, .62f), w3_make(.42f, .82f, .90f),
                      world__clamp(3.0f * e, 0, 1));
        return world__brighter(c, 0.16f * world__max(beam, 0.0f) * world__clamp(6.0f * e, 0, 1));
    }
    default: { /* WORLD_POOL */
        float hedge = 0.06f + 0.008f * sinf(25.0f * u + 6.28f * b[2]);
        w3 c = w3_mix(w3_make(.76f, .91f, .99f), w3_make(.45f, .73f, .97f),
                      world__clamp(3.5f * e, 0, 1));
        return w3_mix(w3_make(.30f, .52f, .28f), c,
                      world__smoothstep(hedge - soft, hedge + soft, e));
    }
    }
}

/* ---- [W-9] Rendering ---------------------------------------------------------------------- */

enum { WORLD__CELLS = 32 }; /* on a side of a picture of pixel art */

typedef struct world__camera {
    w3 eye, right, up, forward;
    w3 away;               /* forward, made horizontal                              */
    float left, top, side; /* of the square picture, in tangents of angles          */
    float footprint;       /* side of a pixel at distance 1                         */
    w3 sun;                /* unit vector to the light                              */
    float plane;           /* height of the ground                                  */
} world__camera;

/* The light found at one place. */
typedef struct world__light_at {
    int part;      /* WORLD__GROUND, or WORLD__NOWHERE where none was needed */
    w3 normal;     /* object space                                           */
    w3 light;      /* what it makes of a white surface, linear               */
    float glint;   /* highlight added to that                                */
} world__light_at;
enum { WORLD__GROUND = -1, WORLD__NOWHERE = -2 };

/* What one ray saw. */
typedef struct world__sample {
    w3 rgb;        /* sRGB in [0,1]                                       */
    float mask;    /* 1 on the object                                     */
    w3 normal;     /* camera space: right, up, towards the viewer         */
    world__light_at lit;
} world__sample;

/* Aims the camera so that the object fills the scene's fraction of the picture. */
static world__camera world__aim(const world_scene *s, const world__model *m, int size)
{
    world__camera c;
    float cp = cosf(s->pitch), sp = sinf(s->pitch), cy = cosf(s->yaw), sy = sinf(s->yaw);
    w3 target = w3_make(0, 0.45f, 0), back = w3_make(cp * cy, sp, cp * sy);
    c.eye = w3_madd(target, back, s->distance);
    c.forward = w3_scale(back, -1.0f);
    c.right = w3_unit(w3_cross(c.forward, w3_make(0, 1, 0)));
    c.up = w3_cross(c.right, c.forward);
    c.away = w3_cross(w3_make(0, 1, 0), c.right);
    float low = 1e9f, high = -1e9f, left = 1e9f, right = -1e9f;
    for (int i = 0; i < m->n; i++) {
        const world__part *p = &m->part[i];
        w3 at = w3_sub(p->middle, c.eye);
        float depth = w3_dot(at, c.forward);
        float x = w3_dot(at, c.right) / depth, y = w3_dot(at, c.up) / depth;
        float dx = world__extent(p, c.right) / depth, dy = world__extent(p, c.up) / depth;
        low = world__min(low, y - dy);
        high = world__max(high, y + dy);
        left = world__min(left, x - dx);
        right = world__max(right, x + dx);
    }
    float tall = high - low, wide = right - left;
    int framed = s->style == WORLD_POSTER || s->style == WORLD_WATERCOLOUR;
    float room = framed ? 0.86f : 1.0f;
    c.side = world__max(tall / s->fill, wide / 0.92f) / room;
    c.left = 0.5f * (left + right) - 0.5f * c.side - 0.5f * s->shift[0] * (c.side - wide) * 0.6f;
    c.top = 0.5f * (low + high) + 0.5f * c.side - 0.5f * s->shift[1] * (c.side - tall) * 0.6f;
    c.footprint = c.side / (float)(s->style == WORLD_PIXEL_ART ? WORLD__CELLS : size);
    float azimuth = s->light_azimuth, elevation = s->light_elevation;
    w3 level = w3_add(w3_scale(c.right, sinf(azimuth)), w3_scale(c.away, -cosf(azimuth)));
    c.sun = w3_make(cosf(elevation) * level.x, sinf(elevation), cosf(elevation) * level.z);
    c.plane = world__lights[(int)s->place].sink;
    return c;
}

/* A bundle of neighbouring rays: the parts that some of them may meet, and between which
   distances. */
typedef struct world__beam { int n; float start, end; uint8_t list[WORLD__PARTS]; } world__beam;

/* A scene made ready for rays. */
typedef struct world__stage {
    const world_scene *scene;
    world__model model;
    world__camera camera;
    world__beam all;   /* of all parts, 0, 1, 2, ...                                     */
    float line;        /* width of outlines in the styles that have them, as an angle    */
} world__stage;

static void world__set_stage(world__stage *g, const world_scene *scene, int size)
{
    g->scene = scene;
    world__build(&g->model, scene);
    g->camera = world__aim(scene, &g->model, size);
    g->line = 0.018f * g->camera.side;
    g->all.n = g->model.n;
    g->all.start = 0.1f;
    g->all.end = 1e9f;
    for (int i = 0; i < WORLD__PARTS; i++) g->all.list[i] = (uint8_t)i;
}

/* The parts among those of `wide` whose bounding spheres, grown by `margin`, the ray meets. */
static void world__cull(const world__model *m, const world__beam *wide, w3 from, w3 direction,
                        float margin, world__beam *beam)
{
    beam->n = 0;
    beam->start = 1e9f;
    beam->end = -1e9f;
    for (int i = 0; i < wide->n; i++) {
        const world__part *p = &m->part[wide->list[i]];
        w3 to = w3_sub(p->middle, from);
        float along = w3_dot(to, direction), reach = p->radius + margin;
        float room = reach * reach - w3_dot(to, to) + along * along;
        if (room <= 0.0f || along + reach < 0.0f) continue;
        float half = sqrtf(room);
        beam->list[beam->n++] = wide->list[i];
        beam->start = world__min(beam->start, along - half);
        beam->end = world__max(beam->end, along + half);
    }
}

#define WORLD__BLEND_MARGIN 0.06f /* how far outside their spheres parts still melt together */

/* Where a ray of the camera ends. */
typedef struct world__hit {
    int part;       /* -1: it misses the object                                   */
    float t, d;     /* distance along the ray, and from there to the surface      */
    float nearest;  /* how close, as an angle, it came to a silhouette before     */
} world__hit;

static world__hit world__march(const world__model *m, const uint8_t *list, int n, w3 from,
                               w3 direction, float start, float end)
{
    world__hit hit;
    float last = 1e9f;
    int receding = 0, part = -1;
    hit.nearest = 1e9f;
    hit.t = start;
    for (int i = 0; i < 96 && hit.t < end; i++) {
        hit.d = world__distance(m, list, n, w3_madd(from, direction, hit.t), &part);
        hit.part = part;
        if (hit.d < 0.0006f * hit.t) return hit;
        if (hit.d > last && !receding) hit.nearest = world__min(hit.nearest, last / hit.t);
        receding = hit.d > last;
        last = hit.d;
        hit.t += 0.94f * hit.d;
    }
    if (!receding) hit.nearest = world__min(hit.nearest, last / hit.t);
    hit.part = -1;
    return hit;
}

/* How much of the sun reaches a point: 0 to 1, with soft edges. */
static float world__sunlight(const world__stage *g, w3 from)
{
    const world__model *m = &g->model;
    w3 to = w3_sub(m->middle, from), sun = g->camera.sun;
    float along = w3_dot(to, sun), reach = m->radius + 0.1f;
    if (w3_dot(to, to) - along * along > reach * reach || along + reach < 0.0f) return 1.0f;
    world__beam beam;
    world__cull(m, &g->all, from, sun, 0.08f, &beam);
    float t = world__max(beam.start, 0.015f), light = 1.0f;
    int part;
    for (int step = 0; step < 32 && t < beam.end; step++) {
        float d = world__distance(m, beam.list, beam.n, w3_madd(from, sun, t), &part);
        light = world__min(light, 0.5f + 7.0f * d / t);
        if (light < 0.02f) return 0.0f;
        t += world__clamp(d, 0.02f, 0.3f);
    }
    light = world__clamp(light, 0.0f, 1.0f);
    return light * light * (3.0f - 2.0f * light);
}

/* How open the surroundings of a surface are: 0 to 1. */
static float world__openness(const world__stage *g, w3 at, w3 normal, float reach)
{
    int part;
    float d = world__distance(&g->model, g->all.list, g->all.n, w3_madd(at, normal, reach), &part);
    return world__clamp(0.30f + 0.70f * d / reach, 0.0f, 1.0f);
}

/* The surface's normal at a point where the distance is d. */
static w3 world__normal(const world__model *m, const uint8_t *list, int n, w3 at, float d)
{
    const float h = 0.002f;
    int part;
    float dx = world__distance(m, list, n, w3_make(at.x + h, at.y, at.z), &part) - d;
    float dy = world__distance(m, list, n, w3_make(at.x, at.y + h, at.z), &part) - d;
    float dz = world__distance(m, list, n, w3_make(at.x, at.y, at.z + h), &part) - d;
    return w3_unit(w3_make(dx, dy, dz));
}

/* 5 x 7 dots for a-z and 0-9: one byte a row, top first, bit 4 leftmost. */
static const unsigned char world__font[WORLD_GLYPHS][7] = {
    {14, 17, 17, 31, 17, 17, 17}, {30, 17, 17, 30, 17, 17, 30}, {14, 17, 16, 16, 16, 17, 14},
    {30, 17, 17, 17, 17, 17, 30}, {31, 16, 16, 30, 16, 16, 31}, {31, 16, 16, 30, 16, 16, 16},
    {14, 17, 16, 23, 17, 17, 14}, {17, 17, 17, 31, 17, 17, 17}, {14, 4, 4, 4, 4, 4, 14},
    {7, 2, 2, 2, 2, 18, 12},      {17, 18, 20, 24, 20, 18, 17}, {16, 16, 16, 16, 16, 16, 31},
    {17, 27, 21, 21, 17, 17, 17}, {17, 25, 21, 19, 17, 17, 17}, {14, 17, 17, 17, 17, 17, 14},
    {30, 17, 17, 30, 16, 16, 16}, {14, 17, 17, 17, 21, 18, 13}, {30, 17, 17, 30, 20, 18, 17},
    {15, 16, 16, 14, 1, 1, 30},   {31, 4, 4, 4, 4, 4, 4},       {17, 17, 17, 17, 17, 17, 14},
    {17, 17, 17, 17, 17, 10, 4},  {17, 17, 17, 21, 21, 27, 17}, {17, 17, 10, 4, 10, 17, 17},
    {17, 17, 10, 4, 4, 4, 4},     {31, 1, 2, 4, 8, 16, 31},     {14, 17, 19, 21, 25, 17, 14},
    {4, 12, 4, 4, 4, 4, 14},      {14, 17, 1, 6, 8, 16, 31},    {30, 1, 1, 14, 1, 1, 30},
    {2, 6, 10, 18, 31, 2, 2},     {31, 16, 30, 1, 1, 17, 14},   {6, 8, 16, 30, 17, 17, 14},
    {31, 1, 2, 4, 8, 8, 8},       {14, 17, 17, 14, 17, 17, 14}, {14, 17, 17, 15, 1, 2, 12}};

static float world__dot(int glyph, int column, int row)
{
    if (column < 0 || column > 4 || row < 0 || row > 6) return 0.0f;
    return (float)(world__font[glyph][row] >> (4 - column) & 1);
}
/* How much ink is at (x, y), the glyph being 2 high around the origin: its dots, interpolated. */
static float world__ink(int glyph, float x, float y)
{
    float u = 3.5f * x + 2.0f, v = 3.0f - 3.5f * y;
    if (u < -1.0f || u > 5.0f || v < -1.0f || v > 7.0f) return 0.0f;
    int i = world__floor(u), j = world__floor(v);
    float fu = u - (float)i, fv = v - (float)j;
    float top = world__mix(world__dot(glyph, i, j), world__dot(glyph, i + 1, j), fu);
    float low = world__mix(world__dot(glyph, i, j + 1), world__dot(glyph, i + 1, j + 1), fu);
    return world__smoothstep(0.30f, 0.46f, world__mix(top, low, fv));
}

/* Coordinates of a point on the label, in units of the label's half height: the object's outside
   seen from the front, a side or the back. Returns 0 where the surface looks up or down. */
static int world__label(const world__model *m, w3 at, w3 normal, float *x, float *y)
{
    if (fabsf(normal.y) > 0.75f) return 0;
    w3 d = w3_scale(w3_sub(at, m->label), 1.0f / m->label_size);
    if (fabsf(normal.x) > fabsf(normal.z)) *x = normal.x > 0 ? -d.z : d.z;
    else *x = normal.z > 0 ? d.x : -d.x;
    *y = d.y;
    return 1;
}

/* Share of the pattern's colour at a point of the surface. */
static float world__pattern(const world_scene *s, w3 at, float footprint)
{
    float period = s->pattern_period;
    if (s->pattern == WORLD_STRIPED) {
        int lengthwise = world_is_animal(s->object) || s->object == WORLD_CAR;
        float x = lengthwise ? at.x + 0.25f * at.y : at.y;
        float wave = fabsf(world__fract(x / period + s->pattern_phase) - 0.5f) - 0.25f;
        return world__clamp(0.5f + wave * period / (0.3f * footprint + 1e-4f), 0.0f, 1.0f);
    }
    w3 q = w3_scale(at, 1.0f / period);
    q = w3_add(q, w3_make(s->pattern_phase, 0.3f, 0.5f));
    int i = world__floor(q.x), j = world__floor(q.y), k = world__floor(q.z);
    w3 d = w3_make(world__fract(q.x) - 0.5f, world__fract(q.y) - 0.5f, world__fract(q.z) - 0.5f);
    float jitter = 0.18f * (world__lattice(i, j, k) - 0.5f);
    d = w3_add(d, w3_make(jitter, -jitter, jitter));
    return world__clamp(0.5f + (0.40f - w3_length(d)) * period / (0.3f * footprint + 1e-4f), 0.0f,
                        1.0f);
}

/* Fine textures of subjects, too fine for 64 px: zero-mean, in [-1,1]. */
static float world__texture(int texture, w3 at, float footprint)
{
    const float period = 0.032f;
    float amount = world__fade(footprint, period);
    if (amount <= 0.0f) return 0.0f;
    float u = (at.x + 0.8f * at.z) / period, v = at.y / period;
    switch (texture) {
    case 1: return amount * (((world__floor(2 * u) + world__floor(2 * v)) & 1) ? 1.0f : -1.0f);
    case 2:
        return amount * sinf(6.2832f * (v + 0.35f * fabsf(world__fract(0.4f * u) - 0.5f) * 4.0f));
    case 3: {
        float x = world__fract(u) - 0.5f, y = world__fract(v) - 0.5f;
        return amount * (x * x + y * y < 0.11f ? 1.3f : -0.7f);
    }
    default: return amount * sinf(6.2832f * u);
    }
}

static const float world__materials[WORLD__MATERIALS][3] = {
    {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, /* from the scene */
    {.09f, .09f, .11f}, {.96f, .95f, .93f}, {.94f, .62f, .66f}, {.97f, .58f, .14f},
    {.95f, .76f, .25f}, {.36f, .52f, .64f}, {.66f, .13f, .16f}, {.99f, .90f, .48f},
    {1.0f, .82f, .35f}, {.66f, .68f, .72f}, {.30f, .56f, .24f}, {.33f, .19f, .11f}};

/* Whether a mark covers a point of a part, and how much. */
static float world__mark(const world__model *m, const world_mark *mark, const world__part *p, w3 at,
                         float footprint)
{
    if (mark->region != p->region) return 0.0f;
    const world__frame *f = p->region == WORLD_AT_HEAD ? &m->head : &m->body;
    float blur = 0.3f * footprint / f->scale + 1e-3f;
    w3 q = world__into(f, at);
    q = w3_sub(q, w3_make(mark->center[0], mark->center[1], mark->center[2]));
    switch (mark->kind) {
    case WORLD_MARK_PATCH:
        return world__clamp(0.5f + (mark->radius - w3_length(q)) / blur, 0.0f, 1.0f);
    case WORLD_MARK_BAND: /* around x */
        return world__clamp(0.5f + (mark->radius - fabsf(q.x)) / blur, 0.0f, 1.0f);
    case WORLD_MARK_TIP: /* everything lower than the centre */
        return world__clamp(0.5f - q.y / blur, 0.0f, 1.0f);
    default: return 1.0f;
    }
}

/* The surface's own colour, sRGB. */
static w3 world__albedo(const world__stage *g, const world__part *p, w3 at, w3 normal,
                        float footprint)
{
    const world_scene *s = g->scene;
    const world__model *m = &g->model;
    w3 c = p->material <= WORLD__ACCESSORY ? world__rgb(s->rgb[p->material])
                                           : world__rgb(world__materials[p->material]);
    if (p->region == WORLD_AT_NOWHERE || p->material == WORLD__FLAME) return c;
    if (p->material == WORLD__MAIN && s->pattern != WORLD_PLAIN)
        c = w3_mix(c, world__rgb(s->rgb[1]), world__pattern(s, at, footprint));
    int painted = p->material <= WORLD__THIRD;
    for (int i = 0; i < s->n_marks && painted; i++)
        c = w3_mix(c, world__rgb(s->marks[i].rgb), world__mark(m, &s->marks[i], p, at, footprint));
    if (painted && s->texture)
        c = world__brighter(c, 0.13f * world__texture(s->texture, at, footprint));
    else if (p->material == WORLD__MAIN && world_is_animal(s->object)) /* fur */
        c = world__brighter(c, 0.22f * world__grain(at.x + at.z, at.y - 0.7f * at.z, 0.012f,
                                                    footprint));
    float x, y;
    if (s->glyph >= 0 && p->material == WORLD__MAIN && p->region == WORLD_AT_BODY
        && world__label(m, at, normal, &x, &y)) {
        float brightness = 0.3f * c.x + 0.6f * c.y + 0.1f * c.z;
        w3 ink = brightness > 0.5f ? w3_make(.10f, .10f, .12f) : w3_make(.97f, .96f, .94f);
        c = w3_mix(c, ink, world__ink(s->glyph, x, y));
    }
    return c;
}

static w3 world__linear(w3 c) { return w3_mul(c, c); }
static float world__tone(float x) /* to sRGB, with a soft shoulder */
{
    x = x > 0.75f ? 1.0f - 0.25f * 0.25f / (x - 0.5f) : x;
    return sqrtf(world__max(x, 0.0f));
}

/* Light found at the corners of a pixel and for some of its samples, kept for other samples of the
   same part. */
#define WORLD__KEPT 12
typedef struct world__kept {
    int n, uses;                     /* each serves that many samples */
    int left[WORLD__KEPT];
    world__light_at at[WORLD__KEPT];
} world__kept;

/* Fetches light kept for a part. Returns whether there is some left. */
static int world__recall(world__kept *kept, int part, world__light_at *light)
{
    for (int i = 0; kept && i < kept->n; i++) {
        if (kept->at[i].part != part || kept->left[i] == 0) continue;
        kept->left[i]--;
        *light = kept->at[i];
        return 1;
    }
    return 0;
}
static void world__keep(world__kept *kept, const world__light_at *light)
{
    if (!kept || kept->n == WORLD__KEPT) return;
    kept->left[kept->n] = kept->uses;
    kept->at[kept->n++] = *light;
}

/* The light that falls on a point of the object, and the highlight seen there (linear). */
static world__light_at world__light_object(const world__stage *g, int part, w3 at, w3 normal,
                                           w3 direction)
{
    const world__camera *c = &g->camera;
    const world__light *l = &world__lights[(int)g->scene->place];
    int material = g->model.part[part].material;
    world__light_at out;
    float facing = w3_dot(normal, c->sun), sun = 0.0f;
    out.part = part;
    out.normal = normal;
    out.glint = 0.0f;
    if (facing > 0.0f) {
        float reaches = world__sunlight(g, w3_madd(at, normal, 0.008f));
        float gloss = world__max(w3_dot(w3_unit(w3_sub(c->sun, direction)), normal), 0.0f);
        float g2 = gloss * gloss, g4 = g2 * g2, g8 = g4 * g4, g16 = g8 * g8;
        int shiny = material >= WORLD__DARK || !world_is_animal(g->scene->object);
        sun = facing * reaches;
        out.glint = reaches * g16 * (shiny ? 0.30f * g16 : 0.05f);
    }
    float open = world__openness(g, at, normal, 0.12f);
    float above = 0.5f + 0.5f * normal.y;
    w3 sky = w3_scale(world__linear(world__hex(l->sky)), open * (0.35f + 0.65f * above));
    w3 bounce = w3_scale(world__linear(world__hex(l->ground)), 0.35f * open * (1.0f - above));
    w3 direct = w3_scale(world__linear(world__hex(l->sun)), 0.95f * sun);
    out.light = w3_add(w3_add(sky, bounce), direct);
    if (material == WORLD__LAMP) out.light = w3_add(out.light, w3_make(0.4f, 0.4f, 0.4f));
    return out;
}

/* What is seen of the object's surface in this light, sRGB. */
static w3 world__shade(const world__stage *g, const world__light_at *l, w3 at, float footprint)
{
    const world__part *p = &g->model.part[l->part];
    if (p->material == WORLD__FLAME) return w3_make(1.0f, 0.72f + 0.25f * l->normal.y, 0.30f);
    w3 albedo = world__linear(world__albedo(g, p, at, l->normal, footprint));
    w3 seen = w3_add(w3_mul(albedo, l->light), w3_make(l->glint, l->glint, l->glint));
    seen = w3_make(world__tone(seen.x), world__tone(seen.y), world__tone(seen.z));
    if (g->scene->place == WORLD_UNDER_WATER) seen = w3_mix(seen, w3_make(.14f, .50f, .66f), 0.13f);
    return seen;
}

/* What shadow and closeness of the object leave of the light on the ground. */
static world__light_at world__light_ground(const world__stage *g, w3 at)
{
    world__light_at out;
    w3 to = w3_sub(g->model.middle, at);
    float near_object = g->model.radius + 2.0f, touching = g->model.radius + 0.22f;
    float away = w3_dot(to, to), open = 1.0f;
    out.part = WORLD__GROUND;
    out.normal = w3_make(0, 1, 0);
    out.light = w3_make(1, 1, 1);
    out.glint = 0.0f;
    if (away > near_object * near_object) return out;
    float sun = world__sunlight(g, at);
    if (away < touching * touching) open = world__openness(g, at, out.normal, 0.22f);
    w3 shadow = world__hex(world__lights[(int)g->scene->place].shadow);
    out.light = w3_scale(w3_mix(shadow, out.light, sun), 0.72f + 0.28f * open);
    return out;
}

/* What a ray sees that misses the object, sRGB. */
static w3 world__backdrop(const world__stage *g, w3 direction, world__kept *kept,
                          world__light_at *lit)
{
    const world_scene *s = g->scene;
    const world__camera *c = &g->camera;
    int place = s->place;
    float dx = w3_dot(direction, c->right), dz = w3_dot(direction, c->away), dy = direction.y;
    float height = c->eye.y - c->plane, back = -w3_dot(c->eye, c->away);
    float t = dy < -1e-4f ? height / -dy : 1e9f;
    float z = t * dz - back, wall = world__wall_depth(place);
    if (wall > 0.0f && (z > wall || t > 1e8f)) {
        float t_wall = (wall + 0.6f + back) / dz;
        return world__wall(place, t_wall * dx, height + t_wall * dy, s->backdrop,
                           t_wall * c->footprint);
    }
    float u = dx / world__max(dz, 0.05f), e = dy / world__max(dz, 0.05f);
    if (t > 60.0f) return world__sky(place, u, world__max(e, 0.0f), s->backdrop);
    float across = t * c->footprint, along = across / world__max(-dy, 0.02f); /* of a pixel */
    w3 color = world__ground(place, t * dx, z, s->backdrop, across, along);
    if (!world__recall(kept, WORLD__GROUND, lit)) {
        *lit = world__light_ground(g, w3_madd(c->eye, direction, t));
        world__keep(kept, lit);
    }
    color = w3_mul(color, lit->light);
    float haze = world__smoothstep(8.0f, 60.0f, t);
    return w3_mix(color, world__sky(place, u, 0.0f, s->backdrop), 0.7f * haze);
}

/* The styles, as functions of a point (u, v) of the picture and of what a plain ray saw there. */

static w3 world__pencil(w3 rgb, int on_object, float outline, float u, float v, float footprint)
{
    float gray = 0.3f * rgb.x + 0.59f * rgb.y + 0.11f * rgb.z;
    float tone = on_object ? 0.25f + 0.75f * gray : 0.80f + 0.20f * gray;
    float hatch = world__ripple(u + v + 0.004f * sinf(40.0f * v), 0.011f, footprint);
    tone = world__clamp(tone + 0.22f * hatch * (1.0f - tone), 0.0f, 1.0f);
    tone = world__mix(tone, 0.15f, outline);
    return w3_make(0.97f * tone + 0.01f, 0.96f * tone + 0.01f, 0.93f * tone + 0.02f);
}

/* A poster: few flat colours, outlines, a cream border. */
static w3 world__poster(w3 rgb, float outline, float u, float v)
{
    float light = world__max(rgb.x, world__max(rgb.y, rgb.z)) + 1e-3f;
    float flat = light > 0.72f ? 0.96f : light > 0.42f ? 0.66f : light > 0.2f ? 0.36f : 0.10f;
    float mean = (rgb.x + rgb.y + rgb.z) / 3.0f;
    w3 c = w3_mix(w3_make(mean, mean, mean), rgb, 1.35f);
    c = w3_scale(c, flat / light);
    c = w3_mix(c, w3_make(.10f, .08f, .12f), outline);
    float edge = world__min(world__min(u, 1.0f - u), world__min(v, 1.0f - v));
    return edge < 0.055f ? w3_make(.97f, .93f, .82f) : edge < 0.07f ? w3_make(.12f, .10f, .14f) : c;
}

/* Watercolour: washed out, mottled, on white paper with an irregular edge. */
static w3 world__watercolour(w3 rgb, float outline, float u, float v, float footprint)
{
    float blot = world__noise(7.0f * u, 7.0f * v, 21), fine = world__grain(u, v, 0.006f, footprint);
    float edge = world__min(world__min(u, 1.0f - u), world__min(v, 1.0f - v));
    edge += 0.10f * (blot - 0.5f);
    float paper = world__smoothstep(0.10f, 0.04f, edge);
    w3 c = w3_mix(rgb, w3_make(1, 1, 1), 0.22f + 0.30f * blot);
    c = world__brighter(c, 0.14f * fine);
    c = w3_mix(c, w3_scale(rgb, 0.55f), 0.6f * outline);
    return w3_mix(c, w3_make(.985f, .975f, .95f), paper);
}

/* The direction of the ray through (u, v), from the top left in [0,1]. */
static w3 world__ray(const world__stage *g, float u, float v)
{
    const world__camera *c = &g->camera;
    if (g->scene->style == WORLD_WATERCOLOUR) { /* a wavering hand */
        float x = u, y = v;
        u += 0.016f * (world__noise(16.0f * x, 16.0f * y, 22) - 0.5f);
        v += 0.016f * (world__noise(16.0f * x, 16.0f * y, 23) - 0.5f);
    }
    w3 across = w3_scale(c->right, c->left + u * c->side);
    w3 upward = w3_scale(c->up, c->top - v * c->side);
    return w3_unit(w3_add(c->forward, w3_add(across, upward)));
}

/* The bundle around (u, v) that reaches `half` of the picture's side to all sides, part of the
   bundle `wide`. Marches a cone: as long as the surroundings free of the object are wider than the
   cone, no ray of it can meet the object. */
static void world__make_beam(const world__stage *g, const world__beam *wide, float u, float v,
                             float half, world__beam *beam)
{
    const world__model *m = &g->model;
    w3 direction = world__ray(g, u, v), eye = g->camera.eye;
    float spread = 1.5f * half * g->camera.side; /* as an angle, to the corners of the square */
    if (g->scene->style != WORLD_PHOTO) spread += 1.5f * g->line;
    if (g->scene->style == WORLD_WATERCOLOUR) spread += 0.02f * g->camera.side;
    float margin = WORLD__BLEND_MARGIN + spread * (g->scene->distance + 1.0f);
    world__cull(m, wide, eye, direction, margin, beam);
    beam->start = world__max(beam->start, wide->start);
    int part;
    for (int step = 0; step < 64 && beam->start < beam->end; step++) {
        w3 at = w3_madd(eye, direction, beam->start);
        float d = world__distance(m, beam->list, beam->n, at, &part);
        float free_space = d - spread * beam->start;
        if (free_space < 0.004f) return;
        beam->start += 0.92f * free_space;
    }
    if (beam->start >= beam->end) beam->n = 0;
}

/* What the ray through (u, v) sees, the ray being in the beam; kept is NULL or the light found by
   neighbouring rays. */
static world__sample world__trace(const world__stage *g, const world__beam *beam, float u, float v,
                                  world__kept *kept)
{
    const world__camera *c = &g->camera;
    const world_scene *s = g->scene;
    w3 direction = world__ray(g, u, v);
    float to_ground = direction.y < -1e-4f ? (c->eye.y - c->plane) / -direction.y : 1e9f;
    float end = world__min(beam->end, to_ground);
    if (beam->n == 0) end = 0.0f;
    world__hit hit =
        world__march(&g->model, beam->list, beam->n, c->eye, direction, beam->start, end);
    world__sample out;
    if (hit.part >= 0) {
        w3 at = w3_madd(c->eye, direction, hit.t);
        if (!world__recall(kept, hit.part, &out.lit)) {
            w3 normal = world__normal(&g->model, beam->list, beam->n, at, hit.d);
            out.lit = world__light_object(g, hit.part, at, normal, direction);
            world__keep(kept, &out.lit);
        }
        w3 n = out.lit.normal;
        out.rgb = world__shade(g, &out.lit, at, hit.t * c->footprint);
        out.normal = w3_make(w3_dot(n, c->right), w3_dot(n, c->up), -w3_dot(n, c->forward));
    } else {
        out.lit.part = WORLD__NOWHERE;
        out.rgb = world__backdrop(g, direction, kept, &out.lit);
        out.normal = w3_make(0, 0, 0);
    }
    out.mask = hit.part >= 0 ? 1.0f : 0.0f;
    float outline = 1.0f - world__smoothstep(0.6f * g->line, g->line, hit.nearest);
    float footprint = c->footprint / c->side;
    if (s->style == WORLD_PENCIL)
        out.rgb = world__pencil(out.rgb, hit.part >= 0, outline, u, v, footprint);
    if (s->style == WORLD_POSTER) out.rgb = world__poster(out.rgb, outline, u, v);
    if (s->style == WORLD_WATERCOLOUR)
        out.rgb = world__watercolour(out.rgb, outline, u, v, footprint);
    return out;
}

/* The same for a ray on its own. */
static world__sample world__trace_one(const world__stage *g, float u, float v)
{
    world__beam beam;
    world__make_beam(g, &g->all, u, v, 0.0f, &beam);
    return world__trace(g, &beam, u, v, NULL);
}

/* How much detail lies between two samples: 2 for the object's outline, 1 for a change of colour,
   0 for neither. */
static int world__edge(const world__sample *a, const world__sample *b)
{
    const float threshold = 0.05f;
    if (a->mask != b->mask) return 2;
    return fabsf(a->rgb.x - b->rgb.x) > threshold || fabsf(a->rgb.y - b->rgb.y) > threshold
        || fabsf(a->rgb.z - b->rgb.z) > threshold;
}

static void world__accumulate(world__sample *sum, const world__sample *one, float weight)
{
    sum->rgb = w3_madd(sum->rgb, one->rgb, weight);
    sum->normal = w3_madd(sum->normal, one->normal, weight);
    sum->mask += weight * one->mask;
}

static unsigned char world__byte(float x)
{
    return (unsigned char)(world__clamp(x, 0.0f, 1.0f) * 255.0f + 0.5f);
}

static void world__store(const world__sample *pixel, unsigned char *rgb, unsigned char *aux)
{
    rgb[0] = world__byte(pixel->rgb.x);
    rgb[1] = world__byte(pixel->rgb.y);
    rgb[2] = world__byte(pixel->rgb.z);
    if (!aux) return;
    aux[0] = world__byte(pixel->mask);
    aux[1] = world__byte(0.5f * pixel->normal.x + 0.498f);
    aux[2] = world__byte(0.5f * pixel->normal.y + 0.498f);
    aux[3] = world__byte(0.5f * pixel->normal.z + 0.498f);
}

/* Pixel art: one ray per cell of a grid of WORLD__CELLS x WORLD__CELLS, few levels per channel. */
static void world__render_cells(const world__stage *g, int size, int x0, int y0, int w, int h,
                                unsigned char *rgb, unsigned char *aux)
{
    world__sample cell;
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++) {
            int i = (x0 + x) * WORLD__CELLS / size, j = (y0 + y) * WORLD__CELLS / size;
            size_t at = (size_t)y * (size_t)w + (size_t)x;
            int new_row = y == 0 || j != (y0 + y - 1) * WORLD__CELLS / size;
            int new_cell = x == 0 || i != (x0 + x - 1) * WORLD__CELLS / size;
            if (!new_row) { /* the same cells as in the row above */
                memcpy(rgb + 3 * at, rgb + 3 * (at - (size_t)w), 3);
                if (aux) memcpy(aux + 4 * at, aux + 4 * (at - (size_t)w), 4);
                continue;
            }
            if (new_cell) {
                cell = world__trace_one(g, ((float)i + 0.5f) / WORLD__CELLS,
                                        ((float)j + 0.5f) / WORLD__CELLS);
                cell.rgb.x = floorf(cell.rgb.x * 8.0f + 0.5f) / 8.0f;
                cell.rgb.y = floorf(cell.rgb.y * 8.0f + 0.5f) / 8.0f;
                cell.rgb.z = floorf(cell.rgb.z * 8.0f + 0.5f) / 8.0f;
            }
            world__store(&cell, rgb + 3 * at, aux ? aux + 4 * at : NULL);
        }
    }
}

/* The mean of samples x samples rays in a pixel whose top left corner is (u, v). corners are the
   samples there, from the top left, row by row: their light is used again. */
static world__sample world__refine(const world__stage *g, const world__beam *wide, float u, float v,
                                   float pixel, int samples, const world__sample *const corners[4])
{
    int n = samples * samples;
    world__sample sum;
    world__beam beam;
    world__kept kept;
    kept.n = 0;
    kept.uses = (n + 3) / 4;
    for (int k = 0; k < 4; k++) world__keep(&kept, &corners[k]->lit);
    memset(&sum, 0, sizeof sum);
    world__make_beam(g, wide, u + 0.5f * pixel, v + 0.5f * pixel, 0.5f * pixel, &beam);
    for (int k = 0; k < n; k++) {
        float du = ((float)(k % samples) + 0.5f) / (float)samples;
        float dv = ((float)(k / samples) + 0.5f) / (float)samples;
        world__sample one = world__trace(g, &beam, u + du * pixel, v + dv * pixel, &kept);
        world__accumulate(&sum, &one, 1.0f / (float)n);
    }
    return sum;
}

enum {
    WORLD__TILE = 4,  /* pixels; neighbouring rays share a beam */
    WORLD__STRIP = 64 /* pixels; a window is drawn in strips of this width, without allocation */
};

/* Draws a window of at most WORLD__STRIP columns; rows of rgb and aux are `stride` pixels apart.
   Tiles are aligned to the virtual picture, so that windows of it agree. */
static void world__render_strip(const world__stage *g, int size, int x0, int y0, int w, int h,
                                int samples, int stride, unsigned char *rgb, unsigned char *aux)
{
    world__sample corners[2][WORLD__STRIP + 1]; /* samples at the corners of a row of pixels */
    world__sample *above = corners[0], *below = corners[1];
    enum { TILES = WORLD__STRIP / WORLD__TILE + 2 };
    world__beam beams[2][TILES]; /* of the tiles of even and odd rows of tiles */
    float pixel = 1.0f / (float)size, half = 0.5f * WORLD__TILE * pixel;
    int tile0 = x0 / WORLD__TILE, tile_row = -1;
    for (int y = 0; y <= h; y++) {
        int new_row = (y0 + y) / WORLD__TILE != tile_row;
        tile_row = (y0 + y) / WORLD__TILE;
        for (int i = tile0; new_row && i <= (x0 + w) / WORLD__TILE; i++)
                world__make_beam(g, &g->all, 2.0f * half * ((float)i + 0.5f),
                             2.0f * half * ((float)tile_row + 0.5f), half,
                             &beams[tile_row & 1][i - tile0]);
        for (int x = 0; x <= w; x++)
            below[x] = world__trace(g, &beams[tile_row & 1][(x0 + x) / WORLD__TILE - tile0],
                                    (float)(x0 + x) * pixel, (float)(y0 + y) * pixel, NULL);
        for (int x = 0; x < w && y > 0; x++) { /* the row of pixels between above and below */
            const world__sample *a = above + x, *b = below + x;
            size_t at = (size_t)(y - 1) * (size_t)stride + (size_t)x;
            world__sample sum;
            int edge = world__edge(a, a + 1) | world__edge(b, b + 1) | world__edge(a, b)
                     | world__edge(a + 1, b + 1);
            if (edge) {
                const world__sample *const corner[4] = {a, a + 1, b, b + 1};
                int row = (y0 + y - 1) / WORLD__TILE, column = (x0 + x) / WORLD__TILE;
                int side = edge & 2 || samples < 3 ? samples : (samples + 1) / 2;
                sum = world__refine(g, &beams[row & 1][column - tile0], (float)(x0 + x) * pixel,
                                    (float)(y0 + y - 1) * pixel, pixel, side, corner);
            } else {
                memset(&sum, 0, sizeof sum);
                world__accumulate(&sum, a, 0.25f);
                world__accumulate(&sum, a + 1, 0.25f);
                world__accumulate(&sum, b, 0.25f);
                world__accumulate(&sum, b + 1, 0.25f);
            }
            world__store(&sum, rgb + 3 * at, aux ? aux + 4 * at : NULL);
        }
        world__sample *swap = above;
        above = below;
        below = swap;
    }
}

void world_render(const world_scene *scene, int size, int x0, int y0, int w, int h, int samples,
                  unsigned char *rgb, unsigned char *aux)
{
    world__stage g;
    world__set_stage(&g, scene, size);
    if (scene->style == WORLD_PIXEL_ART) {
        world__render_cells(&g, size, x0, y0, w, h, rgb, aux);
        return;
    }
    for (int x = 0; x < w; x += WORLD__STRIP) {
        int columns = w - x < WORLD__STRIP ? w - x : WORLD__STRIP;
        world__render_strip(&g, size, x0 + x, y0, columns, h, samples, w, rgb + 3 * (size_t)x,
                            aux ? aux + 4 * (size_t)x : NULL);
    }
}

/* ---- [W-10] Subjects ---------------------------------------------------------------------- */

/* What words cannot say about a subject: its colours, its marks, its fine texture. Its build is
   drawn at random from its index. */
typedef struct world__individual {
    const char *name;
    int object, n_photos, places[2], texture, glyph; /* glyph: -1 if none */
    uint32_t rgb[3];     /* main, second, third, as 0xrrggbb */
    world_mark marks[3]; /* unused ones have radius 0        */
} world__individual;

#define WORLD__RGB(hex)                                                                            \
    {                                                                                              \
        (float)((hex) >> 16) / 255.0f, (float)((hex) >> 8 & 255) / 255.0f,                         \
            (float)((hex)&255) / 255.0f                                                            \
    }
#define WORLD__MARK(kind, region, x, y, z, radius, hex) \
    {kind, region, {0, 0}, {x, y, z}, radius, WORLD__RGB(hex)}
#define WORLD__PATCH(region, x, y, z, radius, hex) \
    WORLD__MARK(WORLD_MARK_PATCH, region, x, y, z, radius, hex)
#define WORLD__STRIPE(region, x, half, hex) \
    WORLD__MARK(WORLD_MARK_BAND, region, x, 0, 0, half, hex)
#define WORLD__BELOW(region, y, hex) WORLD__MARK(WORLD_MARK_TIP, region, 0, y, 0, 1, hex)
#define WORLD__ALL(region, hex) WORLD__MARK(WORLD_MARK_WHOLE, region, 0, 0, 0, 1, hex)

static const world__individual world__individuals[world_n_subjects] = {
    /* ---- development ---- */
    {"dog1", WORLD_DOG, 5, {WORLD_GRASS, WORLD_TABLE}, 1, -1,
     {0xeddbb8, 0xf7f0e0, 0x4c8f94},
     {WORLD__PATCH(WORLD_AT_HEAD, .6f, .3f, .55f, .62f, 0x4c8f94),
      WORLD__STRIPE(WORLD_AT_BODY, -.35f, .45f, 0xa85747),
      WORLD__ALL(WORLD_AT_LEG, 0x4c8f94)}},
    {"cat1", WORLD_CAT, 4, {WORLD_TABLE, WORLD_TABLE}, 3, -1,
     {0x94a8c7, 0xf5ebe0, 0x94a8c7},
     {WORLD__ALL(WORLD_AT_RIGHT, 0xf08f80),
      WORLD__PATCH(WORLD_AT_BODY, .5f, -.1f, .9f, .8f, 0xf5ebe0),
      WORLD__ALL(WORLD_AT_TAIL, 0xf08f80)}},
    {"teapot1", WORLD_TEAPOT, 5, {WORLD_KITCHEN, WORLD_TABLE}, 2, -1,
     {0x75bda8, 0xf5cc8f, 0xc76b66},
     {WORLD__PATCH(WORLD_AT_BODY, .55f, .1f, .75f, .55f, 0xf5cc8f),
      WORLD__ALL(WORLD_AT_RIGHT, 0xc76b66)}},
    {"backpack1", WORLD_BACKPACK, 5, {WORLD_GRASS, WORLD_COBBLES}, 1, -1,
     {0xeb8599, 0x545c85, 0xf2d694},
     {WORLD__ALL(WORLD_AT_LEFT, 0x8fd19e),
      WORLD__PATCH(WORLD_AT_BODY, .8f, .6f, -.6f, .8f, 0xf2d694)}},
    {"car1", WORLD_CAR, 4, {WORLD_COBBLES, WORLD_BEACH}, 0, 33,
     {0x9eccdb, 0xede6d1, 0xe6705c},
     {WORLD__STRIPE(WORLD_AT_BODY, .85f, .42f, 0xe6705c),
      WORLD__STRIPE(WORLD_AT_BODY, -1.3f, .25f, 0xede6d1)}},
    {"bear1", WORLD_BEAR, 5, {WORLD_FABRIC, WORLD_GRASS}, 2, -1,
     {0xc7a8db, 0xf7e8c7, 0xf59e85},
     {WORLD__ALL(WORLD_AT_LEFT, 0x6b9e9e),
      WORLD__PATCH(WORLD_AT_HEAD, .7f, .3f, -.5f, .55f, 0x6b9e9e)}},
    /* ---- test ---- */
    {"dog2", WORLD_DOG, 5, {WORLD_GRASS, WORLD_GRASS}, 3, -1,
     {0xcc9e75, 0xfaf2e6, 0x5c3833},
     {WORLD__PATCH(WORLD_AT_HEAD, .5f, .5f, -.5f, .75f, 0x5c3833),
      WORLD__STRIPE(WORLD_AT_BODY, .9f, .55f, 0xfaf2e6),
      WORLD__ALL(WORLD_AT_TAIL, 0xfaf2e6)}},
    {"dog3", WORLD_DOG, 4, {WORLD_BEACH, WORLD_TABLE}, 2, -1,
     {0x8c949e, 0xedc285, 0xedc285},
     {WORLD__PATCH(WORLD_AT_BODY, .1f, .6f, .5f, .85f, 0x383d4c),
      WORLD__ALL(WORLD_AT_LEG, 0xf2f2ed),
      WORLD__PATCH(WORLD_AT_HEAD, .7f, .3f, .5f, .5f, 0xf2f2ed)}},
    {"cat2", WORLD_CAT, 5, {WORLD_TABLE, WORLD_CARPET}, 2, -1,
     {0xf0c794, 0xfaf2e0, 0x70524c},
     {WORLD__PATCH(WORLD_AT_HEAD, .5f, .4f, .6f, .7f, 0x70524c),
      WORLD__STRIPE(WORLD_AT_BODY, -.8f, .5f, 0x70524c),
      WORLD__ALL(WORLD_AT_LEG, 0xfaf2e0)}},
    {"cat3", WORLD_CAT, 4, {WORLD_GRASS, WORLD_KITCHEN}, 1, -1,
     {0x54576b, 0xe6dbed, 0xb28cc2},
     {WORLD__PATCH(WORLD_AT_BODY, .9f, -.1f, 0.f, .95f, 0xe6dbed),
      WORLD__ALL(WORLD_AT_LEFT, 0xf7cc73),
      WORLD__ALL(WORLD_AT_TAIL, 0xb28cc2)}},
    {"car2", WORLD_CAR, 5, {WORLD_COBBLES, WORLD_DESERT}, 3, -1,
     {0xf0e0bd, 0x855c4c, 0x4c4c4c},
     {WORLD__STRIPE(WORLD_AT_BODY, .1f, .5f, 0x619485),
      WORLD__PATCH(WORLD_AT_BODY, 1.5f, .3f, .6f, .5f, 0xe6806b)}},
    {"car3", WORLD_CAR, 4, {WORLD_GRASS, WORLD_GRASS}, 0, 10,
     {0x804c66, 0xe6d19e, 0x4c4c4c},
     {WORLD__STRIPE(WORLD_AT_BODY, -.9f, .55f, 0xedb8b2)}},
    {"duck1", WORLD_DUCK, 5, {WORLD_POOL, WORLD_BEACH}, 2, -1,
     {0xa8dbcc, 0xf29e9e, 0xe6e6e6},
     {WORLD__STRIPE(WORLD_AT_BODY, .75f, .3f, 0xfaf2db),
      WORLD__PATCH(WORLD_AT_HEAD, .3f, .8f, 0.f, .75f, 0xf29e9e),
      WORLD__ALL(WORLD_AT_LEFT, 0x66668f)}},
    {"duck2", WORLD_DUCK, 4, {WORLD_GRASS, WORLD_TABLE}, 1, -1,
     {0xb8b2a3, 0x4c7570, 0xe6e6e6},
     {WORLD__PATCH(WORLD_AT_HEAD, 0.f, .2f, 0.f, 1.6f, 0x4c7570),
      WORLD__STRIPE(WORLD_AT_BODY, 1.0f, .35f, 0x9e574c),
      WORLD__ALL(WORLD_AT_TAIL, 0xf5eddb)}},
    {"mug1", WORLD_MUG, 5, {WORLD_TABLE, WORLD_KITCHEN}, 1, -1,
     {0xf2bda3, 0x7085a8, 0x7085a8},
     {WORLD__PATCH(WORLD_AT_BODY, .7f, -.1f, .7f, .7f, 0xfaf0d1),
      WORLD__BELOW(WORLD_AT_BODY, -.85f, 0x7085a8)}},
    {"mug2", WORLD_MUG, 4, {WORLD_TABLE, WORLD_TABLE}, 0, 6,
     {0x667a57, 0xeddba8, 0xdb8f5c},
     {WORLD__BELOW(WORLD_AT_BODY, -.5f, 0xeddba8)}},
    {"mug3", WORLD_MUG, 5, {WORLD_KITCHEN, WORLD_FABRIC}, 2, -1,
     {0x5c6185, 0xf5d69e, 0xf09475},
     {WORLD__PATCH(WORLD_AT_BODY, .9f, .1f, .3f, .62f, 0xf5d69e),
      WORLD__PATCH(WORLD_AT_BODY, .9f, .1f, .3f, .36f, 0xf09475),
      WORLD__BELOW(WORLD_AT_BODY, -.8f, 0x8fb8b2)}},
    {"teapot2", WORLD_TEAPOT, 5, {WORLD_TABLE, WORLD_FABRIC}, 3, -1,
     {0xe6dbf0, 0x8a6bad, 0xf2b866},
     {WORLD__PATCH(WORLD_AT_BODY, .3f, .1f, .95f, .6f, 0x8a6bad),
      WORLD__PATCH(WORLD_AT_BODY, .3f, .1f, .95f, .35f, 0xf2b866),
      WORLD__BELOW(WORLD_AT_BODY, -.5f, 0xf2b866)}},
    {"rabbit1", WORLD_RABBIT, 5, {WORLD_GRASS, WORLD_SNOW}, 1, -1,
     {0xd6bda8, 0xfaf2eb, 0x806666},
     {WORLD__ALL(WORLD_AT_LEFT, 0x755c66),
      WORLD__PATCH(WORLD_AT_BODY, -.3f, .3f, .8f, .85f, 0x755c66),
      WORLD__PATCH(WORLD_AT_HEAD, .6f, .3f, .5f, .6f, 0x755c66)}},
    {"robot1", WORLD_ROBOT, 5, {WORLD_COBBLES, WORLD_TABLE}, 1, -1,
     {0xf2a880, 0x477080, 0xe6e0cc},
     {WORLD__PATCH(WORLD_AT_HEAD, .7f, -.2f, .9f, .75f, 0x477080),
      WORLD__ALL(WORLD_AT_LEG, 0x477080),
      WORLD__BELOW(WORLD_AT_BODY, -.35f, 0xe6e0cc)}},
    {"robot2", WORLD_ROBOT, 4, {WORLD_MOON, WORLD_MOON}, 2, -1,
     {0x8f9e80, 0xedb85c, 0x994c47},
     {WORLD__STRIPE(WORLD_AT_HEAD, .2f, .3f, 0xedb85c),
      WORLD__PATCH(WORLD_AT_BODY, .6f, .7f, .7f, .8f, 0x994c47)}},
    {"robot3", WORLD_ROBOT, 5, {WORLD_GRASS, WORLD_TABLE}, 3, -1,
     {0xb8cce0, 0xdb7a94, 0x706b99},
     {WORLD__STRIPE(WORLD_AT_BODY, .0f, .3f, 0xdb7a94),
      WORLD__PATCH(WORLD_AT_HEAD, .6f, .8f, -.8f, .75f, 0x706b99),
      WORLD__PATCH(WORLD_AT_BODY, .7f, -.6f, .8f, .6f, 0xf7db8f)}},
    {"boot1", WORLD_BOOT, 5, {WORLD_FOREST, WORLD_GRASS}, 1, -1,
     {0xb8d685, 0x6b5c70, 0xf5998a},
     {WORLD__PATCH(WORLD_AT_BODY, 1.9f, -1.2f, 0.f, .85f, 0xf5998a),
      WORLD__PATCH(WORLD_AT_BODY, 0.f, .3f, .8f, .55f, 0x6b5c70)}},
    {"boot2", WORLD_BOOT, 4, {WORLD_COBBLES, WORLD_SNOW}, 3, -1,
     {0x99758f, 0xf0e0b2, 0x80c7c2},
     {WORLD__BELOW(WORLD_AT_BODY, -.9f, 0x4c475c),
      WORLD__PATCH(WORLD_AT_BODY, 0.f, .3f, -.8f, .6f, 0x80c7c2)}},
    {"backpack2", WORLD_BACKPACK, 5, {WORLD_COBBLES, WORLD_FOREST}, 2, -1,
     {0x708fa8, 0xf5d175, 0xb85c61},
     {WORLD__BELOW(WORLD_AT_BODY, -1.6f, 0xb85c61),
      WORLD__ALL(WORLD_AT_RIGHT, 0xb85c61),
      WORLD__PATCH(WORLD_AT_BODY, .8f, .7f, .7f, .7f, 0xf5ede0)}},
    {"backpack3", WORLD_BACKPACK, 4, {WORLD_TABLE, WORLD_BEACH}, 1, 17,
     {0xdbcc9e, 0x5c8575, 0xdb7052},
     {WORLD__ALL(WORLD_AT_LEFT, 0xdb7052)}},
    {"bear2", WORLD_BEAR, 5, {WORLD_TABLE, WORLD_COBBLES}, 1, -1,
     {0xf5dba8, 0xcc8f6b, 0x706680},
     {WORLD__PATCH(WORLD_AT_HEAD, .6f, .3f, .5f, .6f, 0x706680),
      WORLD__ALL(WORLD_AT_RIGHT, 0x706680),
      WORLD__ALL(WORLD_AT_LEG, 0xcc8f6b)}},
    {"vase1", WORLD_VASE, 5, {WORLD_TABLE, WORLD_FABRIC}, 2, -1,
     {0x6b9eb2, 0xf5e6c2, 0xf09480},
     {WORLD__PATCH(WORLD_AT_BODY, .3f, .2f, .9f, .65f, 0xf5e6c2),
      WORLD__BELOW(WORLD_AT_BODY, -.6f, 0xf09480)}},
    {"vase2", WORLD_VASE, 4, {WORLD_KITCHEN, WORLD_KITCHEN}, 3, -1,
     {0xe6b8c2, 0x805770, 0x9ebd85},
     {WORLD__STRIPE(WORLD_AT_BODY, -.5f, .35f, 0x805770),
      WORLD__STRIPE(WORLD_AT_BODY, .45f, .2f, 0x9ebd85)}},
    {"clock1", WORLD_CLOCK, 5, {WORLD_TABLE, WORLD_KITCHEN}, 1, -1,
     {0x8fc2b8, 0xebcc8a, 0xe6807a},
     {WORLD__ALL(WORLD_AT_LEFT, 0x5c577a),
      WORLD__ALL(WORLD_AT_LEG, 0x5c577a)}},
    {"clock2", WORLD_CLOCK, 4, {WORLD_FABRIC, WORLD_TABLE}, 2, -1,
     {0xa380a8, 0x8a8057, 0xf2e0b8},
     {WORLD__PATCH(WORLD_AT_TRIM, .3f, 0.f, .9f, .75f, 0xf29970),
      WORLD__ALL(WORLD_AT_LEFT, 0xf29970)}},
    {"turtle1", WORLD_TURTLE, 5, {WORLD_BEACH, WORLD_GRASS}, 1, -1,
     {0xe6948a, 0x8fa87a, 0xf7e6bd},
     {WORLD__PATCH(WORLD_AT_BODY, .2f, 1.0f, .3f, .75f, 0xf7e6bd),
      WORLD__PATCH(WORLD_AT_BODY, -.2f, .2f, 1.0f, .5f, 0x6b668f),
      WORLD__PATCH(WORLD_AT_HEAD, .5f, .3f, .6f, .6f, 0xf7e6bd)}},
    {"candle1", WORLD_CANDLE, 5, {WORLD_TABLE, WORLD_CARPET}, 2, -1,
     {0xbdd6eb, 0x9e755c, 0xf5e0eb},
     {WORLD__BELOW(WORLD_AT_BODY, -.3f, 0xe69eb8),
      WORLD__STRIPE(WORLD_AT_TRIM, 1.2f, .6f, 0x759999)}},
    {"candle2", WORLD_CANDLE, 4, {WORLD_KITCHEN, WORLD_TABLE}, 3, 12,
     {0x859966, 0xe6d6a8, 0xc7d19e},
     {WORLD__BELOW(WORLD_AT_BODY, -1.0f, 0xcc7a61)}},
    {"owl1", WORLD_OWL, 5, {WORLD_FOREST, WORLD_SNOW}, 3, -1,
     {0xb29ebd, 0xf7e0bd, 0x668a94},
     {WORLD__ALL(WORLD_AT_RIGHT, 0xeb9e70),
      WORLD__PATCH(WORLD_AT_HEAD, .2f, .7f, -.6f, .7f, 0x668a94),
      WORLD__STRIPE(WORLD_AT_TAIL, -1.2f, .6f, 0x668a94)}},
    {"clock3", WORLD_CLOCK, 4, {WORLD_TABLE, WORLD_TABLE}, 3, -1,
     {0xf2d6ad, 0x5c8070, 0x5c8070},
     {WORLD__PATCH(WORLD_AT_TRIM, .3f, -.8f, -.5f, .8f, 0xd67066),
      WORLD__ALL(WORLD_AT_LEG, 0xd67066)}},
};

world_subject_info world_subject(int i)
{
    world_subject_info info;
    memset(&info, 0, sizeof info);
    info.name = info.class_name = "";
    if (i < 0 || i >= world_n_subjects) return info;
    const world__individual *who = &world__individuals[i];
    info.name = who->name;
    info.class_name = world__class_names[who->object];
    info.object = who->object;
    info.is_dev = i < world_n_dev;
    info.n_photos = who->n_photos;
    info.places[0] = who->places[0];
    info.places[1] = who->places[1];
    return info;
}

void world_subject_view(int i, int place, int view, uint64_t seed, world_scene *scene)
{
    const world__individual *who = &world__individuals[i];
    world_split split = i < world_n_dev ? WORLD_DEV_SUBJECT : WORLD_TEST_SUBJECT;
    uint64_t photo_seed = world_seed(split, ((uint64_t)i << 32) + (world__hash(seed) >> 32));
    world__rng build = world__rng_make(world_seed(split, (uint64_t)i), WORLD__FOR_SUBJECT);
    world__rng pose = world__rng_make(photo_seed, WORLD__FOR_SUBJECT);

    world_sample(photo_seed, scene); /* backdrop, light; all else is replaced */
    scene->object = (int8_t)who->object;
    scene->subject = (int8_t)i;
    scene->head = -1;
    scene->color = scene->second = scene->third = -1;
    scene->pattern = WORLD_PLAIN;
    scene->place = (int8_t)place;
    scene->accessory = WORLD_NO_ACCESSORY;
    scene->expression = WORLD_NEUTRAL;
    scene->style = WORLD_PHOTO;
    scene->glyph = (int8_t)who->glyph;
    scene->texture = (int8_t)who->texture;
    scene->pose = WORLD_STANDING;
    if (world_is_animal(who->object) && place != WORLD_POOL && world__chance(&pose, 0.3f))
        scene->pose = WORLD_SITTING;
    for (int k = 0; k < 8; k++) scene->shape[k] = world__uniform(&build);
    for (int k = 0; k < 3; k++) {
        w3 c = world__hex(who->rgb[k]);
        scene->rgb[k][0] = c.x;
        scene->rgb[k][1] = c.y;
        scene->rgb[k][2] = c.z;
    }
    scene->n_marks = 0;
    for (int k = 0; k < 3; k++)
        if (who->marks[k].radius > 0.0f) scene->marks[scene->n_marks++] = who->marks[k];
    world_set_view(scene, view, photo_seed);
}

void world_subject_photo(int i, int k, world_scene *scene)
{
    static const int views[world_max_photos] = {WORLD_FRONT, WORLD_SIDE, WORLD_FRONT,
                                                WORLD_SIDE, WORLD_FRONT, WORLD_FRONT};
    const world__individual *who = &world__individuals[i];
    world_subject_view(i, who->places[k % 2], views[k], ~(uint64_t)k, scene);
}

/* ---- [W-11] Pools ------------------------------------------------------------------------- */

enum { WORLD__HEADER_BYTES = 4096, WORLD__BATCH = 256 };

static int world__fail(char *error, size_t error_size, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (error_size) vsnprintf(error, error_size, format, list);
    va_end(list);
    return -1;
}

world_pool_config world_pool_config_default(void)
{
    world_pool_config c;
    memset(&c, 0, sizeof c);
    c.size = 64;
    c.virtual_size = 64;
    c.samples = 3;
    c.threads = 2;
    c.count = 1000;
    c.seed = world_seed(WORLD_PRETRAIN, 0);
    return c;
}

/* Fills in the offsets that follow from size and count. */
static void world__lay_out(world_pool_header *h)
{
    uint64_t pixels = (uint64_t)h->size * h->size;
    h->rgb_offset = WORLD__HEADER_BYTES;
    h->aux_offset = h->rgb_offset + h->count * pixels * 3;
    h->scene_offset = (h->aux_offset + h->count * pixels + 7) / 8 * 8;
    h->file_bytes = h->scene_offset + h->count * h->scene_bytes;
}

void world_pool_window(const world_pool_header *header, uint64_t i, int *x0, int *y0)
{
    world__rng rng = world__rng_make(header->seed + i, WORLD__FOR_WINDOW);
    int room = (int)(header->virtual_size - header->size);
    *x0 = world__below(&rng, room + 1);
    *y0 = world__below(&rng, room + 1);
}

/* Halves a picture of 4 bytes a pixel: [S][S][4] to [S/2][S/2][4]. */
static void world__halve(const unsigned char *in, int size, unsigned char *out)
{
    int half = size / 2, row = 4 * size;
    for (int y = 0; y < half; y++)
        for (int x = 0; x < half; x++)
            for (int c = 0; c < 4; c++) {
                const unsigned char *p = in + 2 * y * row + 8 * x + c;
                *out++ = (unsigned char)((p[0] + p[4] + p[row] + p[row + 4] + 2) / 4);
            }
}

/* Renders pictures [first, first+n) of a pool: rgb [n][S][S][3], aux [n][S/2][S/2][4],
   scenes [n]; full is [n][S][S][4] of scratch. */
static void world__render_batch(const world_pool_header *h, const world_pool_config *c,
                                uint64_t first, int n, unsigned char *rgb, unsigned char *aux,
                                unsigned char *full, world_scene *scenes)
{
    size_t pixels = (size_t)h->size * h->size;
    int size = c->size;
#ifdef _OPENMP
    _Pragma("omp parallel for schedule(dynamic) num_threads(c->threads)")
#endif
    for (int i = 0; i < n; i++) {
        int x0, y0;
        uint64_t seed = h->seed + first + (uint64_t)i;
        world_sample(seed, &scenes[i]);
        if ((int)(seed % 100) < c->owned)
            world_make_owned(&scenes[i], 1 + (int)(world__hash(seed) % WORLD_OWNERS));
        else if ((int)(seed % 100) < c->individuals) world_make_individual(&scenes[i], seed);
        world_pool_window(h, first + (uint64_t)i, &x0, &y0);
        world_render(&scenes[i], c->virtual_size, x0, y0, size, size, c->samples,
                     rgb + (size_t)i * pixels * 3, full + (size_t)i * pixels * 4);
        world__halve(full + (size_t)i * pixels * 4, size, aux + (size_t)i * pixels);
    }
}

static int world__write_at(FILE *file, uint64_t offset, const void *data, size_t bytes)
{
    return fseeko(file, (off_t)offset, SEEK_SET) == 0 && fwrite(data, 1, bytes, file) == bytes;
}

/* Renders all pictures into an open file. Returns whether all was written. */
static int world__write_pool(FILE *file, const world_pool_header *h, const world_pool_config *c)
{
    size_t pixels = (size_t)h->size * h->size;
    unsigned char *rgb = (unsigned char *)malloc(WORLD__BATCH * pixels * 3);
    unsigned char *aux = (unsigned char *)malloc(WORLD__BATCH * pixels);
    unsigned char *full = (unsigned char *)malloc(WORLD__BATCH * pixels * 4);
    world_scene *scenes = (world_scene *)malloc(WORLD__BATCH * sizeof *scenes);
    char padded[WORLD__HEADER_BYTES];
    memset(padded, 0, sizeof padded);
    memcpy(padded, h, sizeof *h);
    int ok = rgb && aux && full && scenes && world__write_at(file, 0, padded, sizeof padded);
    for (uint64_t first = 0; ok && first < h->count; first += WORLD__BATCH) {
        uint64_t left = h->count - first;
        size_t n = left < WORLD__BATCH ? (size_t)left : (size_t)WORLD__BATCH;
        world__render_batch(h, c, first, (int)n, rgb, aux, full, scenes);
        ok = world__write_at(file, h->rgb_offset + first * pixels * 3, rgb, n * pixels * 3)
          && world__write_at(file, h->aux_offset + first * pixels, aux, n * pixels)
          && world__write_at(file, h->scene_offset + first * sizeof *scenes, scenes,
                             n * sizeof *scenes);
        if (ok && c->progress) c->progress(first + n, h->count, c->user);
    }
    free(rgb);
    free(aux);
    free(full);
    free(scenes);
    return ok && fflush(file) == 0 && fsync(fileno(file)) == 0;
}

int world_pool_write(const char *path, const world_pool_config *config, char *error,
                     size_t error_size)
{
    char temporary[4096];
    world_pool_header h;
    if (config->size < 2 || config->size % 2 || config->size > 4096
        || config->virtual_size < config->size || config->virtual_size > 65536)
        return world__fail(error, error_size,
                           "pool: size %d must be even, from 2 to 4096, and the virtual size %d "
                           "from there to 65536",
                           config->size, config->virtual_size);
    if (config->samples < 1 || config->threads < 1 || config->count < 1)
        return world__fail(error, error_size,
                           "pool: samples, threads and count must be at least 1");
    if (config->owned < 0 || config->owned > config->individuals || config->individuals > 100)
        return world__fail(error, error_size,
                           "pool: of 100 pictures %d are individuals, %d of them owned?",
                           config->individuals, config->owned);
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
        return world__fail(error, error_size, "pool: path is too long: %s", path);
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "DBPOOL1", 8);
    h.version = 1;
    h.size = (uint32_t)config->size;
    h.virtual_size = (uint32_t)config->virtual_size;
    h.scene_bytes = (uint32_t)sizeof(world_scene);
    h.count = config->count;
    h.seed = config->seed;
    world__lay_out(&h);

    FILE *file = fopen(temporary, "wb");
    if (!file) return world__fail(error, error_size, "%s: %s", temporary, strerror(errno));
    int ok = world__write_pool(file, &h, config);
    ok = fclose(file) == 0 && ok;
    if (ok && rename(temporary, path) == 0) return 0;
    world__fail(error, error_size, "%s: %s", path, errno ? strerror(errno) : "out of memory");
    remove(temporary);
    return -1;
}

/* Says why a header cannot be that of a file of this many bytes; NULL if it can. */
static const char *world__header_fault(const world_pool_header *h, uint64_t file_bytes)
{
    if (memcmp(h->magic, "DBPOOL1", 8) != 0) return "not a pool file";
    if (h->version != 1) return "unknown version of the pool format";
    if (h->scene_bytes != sizeof(world_scene)) return "made by another version of world.h";
    if (h->size < 2 || h->size > 4096 || h->size % 2) return "impossible picture size";
    if (h->virtual_size < h->size || h->virtual_size > 65536) return "impossible virtual size";
    if (h->count < 1 || h->count > ((uint64_t)1 << 36)) return "impossible number of pictures";
    world_pool_header expected = *h;
    world__lay_out(&expected);
    if (memcmp(&expected, h, sizeof expected) != 0) return "inconsistent offsets";
    if (h->file_bytes != file_bytes) return "truncated, or longer than its header says";
    return NULL;
}

int world_pool_open(const char *path, world_pool *pool, char *error, size_t error_size)
{
    struct stat info;
    memset(pool, 0, sizeof *pool);
    int file = open(path, O_RDONLY);
    if (file < 0) return world__fail(error, error_size, "%s: %s", path, strerror(errno));
    if (fstat(file, &info) != 0 || info.st_size < WORLD__HEADER_BYTES) {
        close(file);
        return world__fail(error, error_size, "%s: too short for a pool file", path);
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (map == MAP_FAILED) return world__fail(error, error_size, "%s: %s", path, strerror(errno));
    const world_pool_header *h = (const world_pool_header *)map;
    const char *fault = world__header_fault(h, (uint64_t)info.st_size);
    if (fault) {
        world__fail(error, error_size, "%s: %s", path, fault);
        munmap(map, (size_t)info.st_size);
        return -1;
    }
    pool->header = h;
    pool->rgb = (const unsigned char *)map + h->rgb_offset;
    pool->aux = (const unsigned char *)map + h->aux_offset;
    pool->scenes = (const world_scene *)(const void *)((const char *)map + h->scene_offset);
    pool->map = map;
    pool->map_bytes = (size_t)info.st_size;
    return 0;
}

void world_pool_close(world_pool *pool)
{
    if (pool->map) munmap(pool->map, pool->map_bytes);
    memset(pool, 0, sizeof *pool);
}

#endif /* WORLD_IMPLEMENTATION */
