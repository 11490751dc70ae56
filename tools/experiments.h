/* experiments.h - what is run: settings, experiments, conditions, claims, subjects.

   The tables are the plan; PAPER_NOTES.md, "Plan of the experiments", says the same in words. A
   cell is one condition of one experiment for one subject and one seed. Every condition names what
   it changes in the settings that all others share. Include after dreambooth.h, cli.h, world.h. */
#ifndef EXPERIMENTS_H
#define EXPERIMENTS_H

/* ---- settings -------------------------------------------------------------------------------- */

/* X(name, kind, what the shared settings are, what it is) */
#define SETTINGS(X)                                                                                \
    X(train, WORD, "all", "a method below; upscaler; description, sdedit, nothing: none")          \
    X(lr, NUMBER, "0", "learning rate; 0: the method's")                                           \
    X(steps, NUMBER, "0", "updates; 0: the method's")                                              \
    X(schedule, WORD, "constant", "of the learning rate: constant, or cosine down to 0")           \
    X(gamma, NUMBER, "inf", "min-SNR's; inf: the loss in epsilon; 0: the network's own")           \
    X(batch, NUMBER, "2", "photos in a step, and as many class images")                            \
    X(lambda, NUMBER, "1", "weight of prior preservation; 0: none")                                \
    X(classes, NUMBER, "250", "class images: 50 N for N = 5 photos")                               \
    X(class_guidance, NUMBER, "1", "guidance that they are drawn with")                            \
    X(noun, WORD, "right", "class noun in the prompts: right, none, wrong")                        \
    X(word, WORD, "zxk", "identifier, + for a blank; none")                                        \
    X(photos, NUMBER, "0", "how many; 0: all")                                                     \
    X(shots, WORD, "usual", "the photos' places and views: usual, 1p1v, 1pnv, np1v, npnv")         \
    X(rank, NUMBER, "0", "of the LoRA")                                                            \
    X(text, NUMBER, "0", "1: the text encoder is trained too")                                     \
    X(strength, NUMBER, "0", "SDEdit: share of the way to noise")                                  \
    X(noise, NUMBER, "-1", "variance on the super-resolver's small photo; -1: not trained")

typedef char setting_WORD[24];
typedef double setting_NUMBER;
typedef struct settings {
#define SETTINGS_FIELD(name, kind, preset, what) setting_##kind name;
    SETTINGS(SETTINGS_FIELD)
#undef SETTINGS_FIELD
} settings;

/* Learning rate and steps belong to a method; every condition of a method has the same. The
   experiment "map" chose them on the development subjects, by the rule in PAPER_NOTES.md. */
static const struct { const char *train; double lr; int steps;
} methods[] = {{"all", 5e-4, 250},
               {"attention", 5e-4, 250},
               {"cross", 5e-4, 250},
               {"lora", 1.5e-3, 250},
               {"embedding", 3e-2, 250}};

/* The n characters of a value; not 0 when they are too many, or no number. */
static inline int read_WORD(char *to, const char *value, size_t n)
{
    return snprintf(to, sizeof(setting_WORD), "%.*s", (int)n, value) >= (int)sizeof(setting_WORD);
}
static inline int read_NUMBER(double *to, const char *value, size_t n)
{
    char *end;
    *to = strtod(value, &end);
    return !n || end != value + n;
}
static inline int print_WORD(char *to, size_t size, const char *name, const char *value)
{
    return snprintf(to, size, "%s=%s ", name, value);
}
static inline int print_NUMBER(char *to, size_t size, const char *name, double value)
{
    return snprintf(to, size, "%s=%.9g ", name, value);
}
#define AT_WORD(x) (x)
#define AT_NUMBER(x) (&(x))

/* Applies "name=value name=value". Not 0 after a complaint. */
static inline int settings_change(settings *s, const char *changes)
{
    while (*changes) {
        size_t name = strcspn(changes, "= "), n = strcspn(changes + name, " ") - 1;
        const char *value = changes + name + 1;
        int known = 0, bad = 0;
        if (changes[name] != '=') return fail("\"%s\" is no NAME=VALUE", changes);
#define SETTINGS_READ(field, kind, preset, what)                                                   \
    if (name == strlen(#field) && !strncmp(changes, #field, name))                                 \
        bad = read_##kind(AT_##kind(s->field), value, n), known = 1;
        SETTINGS(SETTINGS_READ)
#undef SETTINGS_READ
        if (!known) return fail("there is no setting in \"%s\"", changes);
        if (bad)
            return fail("\"%.*s\" is no number, or longer than %d characters", (int)(name + 1 + n),
                        changes, (int)sizeof(setting_WORD) - 1);
        changes = value + n;
        changes += strspn(changes, " ");
    }
    return 0;
}

static inline settings settings_default(void)
{
    settings s;
#define SETTINGS_PRESET(field, kind, preset, what)                                                 \
    read_##kind(AT_##kind(s.field), preset, strlen(preset));
    SETTINGS(SETTINGS_PRESET)
#undef SETTINGS_PRESET
    return s;
}

static inline void settings_print(const settings *s, char *out, size_t size)
{
    size_t n = 0;
#define SETTINGS_PRINT(field, kind, preset, what)                                                  \
    n += (size_t)print_##kind(out + n, size - n, #field, s->field);
    SETTINGS(SETTINGS_PRINT)
#undef SETTINGS_PRINT
}

/* ---- scales: how much of everything ---------------------------------------------------------- */

typedef struct scale {
    const char *name;
    size_t photo_side, side; /* pixels of photos, and of the base's pictures; 0: the model's */
    size_t places, each;      /* prompts with a place, pictures of each prompt               */
    size_t class_pictures, more_class_pictures; /* of "a [class]"; where diversity is tested */
    size_t leak;              /* pictures of each prompt of the leakage matrix               */
    size_t shown;             /* pictures of each prompt of the applications                 */
    size_t held_out;          /* renders of the subject that are no photos                   */
    size_t draw_steps, class_steps; /* of sampling                                           */
    double most_steps, most_classes, most_photos, most_batch, most_subjects, most_seeds;
} scale;

static const scale scales[] = {
    {"full", 256, 0, 6, 4, 16, 64, 4, 4, 6, 20, 30, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9},
    {"quick", 256, 0, 2, 2, 4, 4, 1, 1, 2, 4, 4, 4, 4, 1e9, 1e9, 1, 1},
    {"micro", 64, 16, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1}};

/* ---- experiments ----------------------------------------------------------------------------- */

enum { MEASURE_LEAKS = 1, MEASURE_DIVERSITY = 2, MEASURE_APPLICATIONS = 4, MEASURE_TRACE = 8,
       MEASURE_SR = 16, MEASURE_METRICS = 32, MEASURE_PROTOCOL = 64, MEASURE_MORE_CLASS = 128 };

/* Pictures of "a [class]" that are drawn whenever something is measured; the map needs none. */
static inline size_t class_pictures_of(int measures, const scale *s)
{
    return measures & MEASURE_TRACE     ? 0
        : measures & MEASURE_MORE_CLASS ? s->more_class_pictures
                                        : s->class_pictures;
}

typedef struct experiment {
    const char *name, *paper, *question;
    const char *const *subjects;
    int n_subjects, seeds, measures;
} experiment;

/* What its cells of this seed measure: what takes the most pictures with seed 0 alone. */
static inline int measures_with(const experiment *x, int seed)
{
    return seed ? x->measures & ~(MEASURE_LEAKS | MEASURE_MORE_CLASS) : x->measures;
}

/* One subject of each class, all with five photos; living and not in turn, so that the first 8 are
   a cross-section. */
static const char *const test_subjects[] = {
    "dog2", "mug1", "cat2", "teapot2", "duck1", "backpack2", "bear2", "robot1",
    "rabbit1", "car2", "turtle1", "vase1", "boot1", "clock1", "candle1"};
/* the first four have a letter or digit painted on, the others fine texture */
static const char *const sr_subjects[] = {"car3", "mug2", "backpack3", "candle2",
                                          "dog2", "mug1", "teapot2", "vase1"};
static const char *const thirty[] = { /* all that are for testing */
    "dog2", "dog3", "cat2", "cat3", "car2", "car3", "duck1", "duck2", "mug1", "mug2", "mug3",
    "teapot2", "rabbit1", "robot1", "robot2", "robot3", "boot1", "boot2", "backpack2", "backpack3",
    "bear2", "vase1", "vase2", "clock1", "clock2", "clock3", "turtle1", "candle1", "candle2",
    "owl1"};
static const char *const development[] = {"dog1", "teapot1", "bear1", "backpack1", "cat1", "car1"};

/* In the order in which they are run: the most telling first. */
static const experiment experiments[] = {
    {"map", "section 4.5; supplement on learning rate and steps",
     "Which learning rate and how many steps suit each method? Where does overfitting set in?",
     development, 6, 1, MEASURE_TRACE},
    {"prior", "section 3.3, section 4.3, Table 3",
     "Does prior preservation keep the class and its diversity?", test_subjects, 15, 3,
     MEASURE_LEAKS | MEASURE_DIVERSITY | MEASURE_MORE_CLASS},
    {"noun", "section 4.3, Table 4", "Does the right class noun help?", test_subjects, 8, 1, 0},
    {"photos", "supplement, Table 5", "How many photos does it take?", test_subjects, 8, 1, 0},
    {"sr", "section 4.4 of the first version, supplement on super-resolution",
     "Does fine-tuning the super-resolver at low noise restore the subject's own detail?",
     sr_subjects, 8, 1, MEASURE_SR},
    {"baselines", "section 4.2, Table 1; supplement on image-guided editing",
     "Is fine-tuning better than textual inversion, a description, or editing a photo?",
     test_subjects, 8, 1, 0},
    {"applications", "sections 4.4 and 4.5, figures 1, 6 to 8; failure modes, figure 9",
     "How often do the six applications succeed?", test_subjects, 8, 1, MEASURE_APPLICATIONS},
    {"identifier", "section 3.2", "Which identifiers work?", test_subjects, 8, 1, 0},
    {"trained", "section 3.3; LoRA and Custom Diffusion after it", "What has to be trained?",
     test_subjects, 8, 1, 0},
    {"lambda", "section 3.3, eq. 2", "How much prior preservation?", test_subjects, 8, 1, 0},
    {"class_images", "section 3.3: 200 N class images", "How many class images?", test_subjects, 8,
     1, 0},
    {"class_guidance", "section 3.3: the ancestral sampler", "Drawn with guidance or without?",
     test_subjects, 8, 1, 0},
    {"entanglement", "section 4.5, figure 9", "Do photos of one place and one view tie the subject "
     "to them?", test_subjects, 8, 1, 0},
    {"frequency", "section 3.2; new here", "Does it matter how often the identifier was seen in "
     "pre-training?", test_subjects, 8, 1, 0},
    {"first_version", "section 4 of the first version: 200 epochs, learning rate 1e-5, lambda 1, "
     "200 N class images", "Do its settings carry over?", test_subjects, 8, 1, 0},
    {"demo", "sections 4.1 and 4.2, Table 1: 30 subjects, 25 prompts, 4 pictures",
     "With the demo's settings: is it the subject, and not another, in the place that was asked?",
     thirty, 30, 1, MEASURE_PROTOCOL},
    {"metrics", "section 4.1; new here", "Do DINO, CLIP-I and LPIPS follow the true distance of "
     "subjects?", test_subjects, 15, 1, MEASURE_METRICS}};
enum { EXPERIMENTS = sizeof experiments / sizeof experiments[0] };

#define UPSCALER "train=upscaler lr=2e-3 steps=600 schedule=cosine gamma=0 batch=4 "
static const struct { const char *experiment, *name, *changes; } conditions[] = {
    {"map", "all-1.5e-4", "lr=1.5e-4 steps=500"},
    {"map", "all-5e-4", "lr=5e-4 steps=500"},
    {"map", "all-1.5e-3", "lr=1.5e-3 steps=500"},
    {"map", "lora-5e-4", "train=lora rank=16 lr=5e-4 steps=500"},
    {"map", "lora-1.5e-3", "train=lora rank=16 lr=1.5e-3 steps=500"},
    {"map", "lora-5e-3", "train=lora rank=16 lr=5e-3 steps=500"},
    {"map", "embedding-3e-3", "train=embedding lambda=0 lr=3e-3 steps=1000"},
    {"map", "embedding-1e-2", "train=embedding lambda=0 lr=1e-2 steps=1000"},
    {"map", "embedding-3e-2", "train=embedding lambda=0 lr=3e-2 steps=1000"},
    {"prior", "with", ""},
    {"prior", "without", "lambda=0"},
    {"noun", "right", ""},
    {"noun", "none", "noun=none"},
    {"noun", "wrong", "noun=wrong"},
    {"photos", "1", "photos=1"},
    {"photos", "2", "photos=2"},
    {"photos", "3", "photos=3"},
    {"photos", "4", "photos=4"},
    {"photos", "5", "photos=5"},
    {"sr", "none", "train=nothing"},
    {"sr", "1e-5", UPSCALER "noise=1e-5"},
    {"sr", "1e-3", UPSCALER "noise=1e-3"},
    {"sr", ".25", UPSCALER "noise=.25"},
    {"baselines", "dreambooth", ""},
    {"baselines", "inversion", "train=embedding lambda=0"},
    {"baselines", "description", "train=description"},
    {"baselines", "sdedit-.3", "train=sdedit strength=.3"},
    {"baselines", "sdedit-.5", "train=sdedit strength=.5"},
    {"baselines", "sdedit-.6", "train=sdedit strength=.6"},
    {"baselines", "sdedit-.7", "train=sdedit strength=.7"},
    {"baselines", "sdedit-.9", "train=sdedit strength=.9"},
    {"applications", "dreambooth", ""},
    {"identifier", "rare", ""},
    {"identifier", "three-rare", "word=gqk+xhv+vjw"},
    {"identifier", "letters", "word=x9w5q7h"},
    {"identifier", "colour", "word=purple"},
    {"identifier", "existing", "word=strange"}, /* in the encoder's text, in no caption */
    {"identifier", "none", "word=none"},
    {"trained", "all", ""},
    {"trained", "all+text", "text=1"},
    {"trained", "attention", "train=attention"},
    {"trained", "attention+text", "train=attention text=1"},
    {"trained", "cross", "train=cross"},
    {"trained", "lora-4", "train=lora rank=4"},
    {"trained", "lora-16", "train=lora rank=16"},
    {"trained", "lora-64", "train=lora rank=64"},
    {"lambda", "0", "lambda=0"},
    {"lambda", ".1", "lambda=.1"},
    {"lambda", "1", ""},
    {"lambda", "10", "lambda=10"},
    {"class_images", "0", "classes=0"},
    {"class_images", "5", "classes=5"},
    {"class_images", "250", ""},
    {"class_images", "1000", "classes=1000"},
    {"class_guidance", "1", ""},
    {"class_guidance", "3", "class_guidance=3"},
    {"entanglement", "1p1v", "photos=4 shots=1p1v"},
    {"entanglement", "1pnv", "photos=4 shots=1pnv"},
    {"entanglement", "np1v", "photos=4 shots=np1v"},
    {"entanglement", "npnv", "photos=4 shots=npnv"},
    {"frequency", "first", ""},          /* the most frequent rare word     */
    {"frequency", "60th", "word=gx"},
    {"frequency", "never", "word=qhx"},
    {"first_version", "shared", ""},
    {"first_version", "literal", "lr=1e-5 steps=500 classes=1000"}, /* 200 x 5 photos by 2 */
    {"demo", "tuned", "lr=8e-4 steps=450 schedule=cosine batch=4 classes=40"}, /* as `make demo` */
    {"demo", "description", "train=description"},
    {"metrics", "follow", "train=nothing"}};
enum { CONDITIONS = sizeof conditions / sizeof conditions[0] };

/* ---- claims ---------------------------------------------------------------------------------- */

/* MORE, LESS: of `value`, in condition a than in every condition of b (words); b "=.5": than that
   number; "@other": than that value of the same cells. ALIKE: a and b within `margin` of b's mean.
   RISES: the slope over the conditions of a, in their order, is above 0; with b "-" below.
   FOLLOWS: correlates, over subjects, with how frequent the class is in pre-training. */
typedef enum relation { MORE, LESS, ALIKE, RISES, FOLLOWS } relation;

typedef struct claim {
    const char *id; /* H1 ... H8, tested as one family; "": explored, with its experiment's */
    const char *experiment, *value, *a;
    relation relation;
    const char *b;
    double margin, paper; /* paper: its difference a - b, or NAN where it gives none or cannot
                             be compared */
    const char *says, *numbers; /* the claim; the paper's figures */
} claim;

static const claim claims[] = {
    {"H1", "prior", "pres", "without", MORE, "with", 0, .171,
     "without prior preservation \"a [class]\" drifts towards the subject (PRES)", ".664 / .493"},
    {"H2", "prior", "div", "with", MORE, "without", 0, .020,
     "with it pictures of the subject are more diverse (DIV)", ".391 / .371"},
    {"H3", "prior", "clip_t", "with", ALIKE, "without", .1, (double)NAN,
     "prompt fidelity (CLIP-T) stays as it was without it, within 10 %", ".308 / .306"},
    {"H4", "prior", "class_diversity_64", "with", ALIKE, "@class_diversity_64_original", .1,
     (double)NAN, "with it \"a [class]\" stays as diverse as before, within 10 %", "shown"},
    {"H5", "noun", "dino", "right", MORE, "none wrong", 0, .290,
     "the right class noun beats none and a wrong one (DINO)", ".744 / .303 and .454"},
    {"H6", "photos", "dino", "1 2 3 4", RISES, "", 0, .025,
     "subject fidelity rises from one photo to four (DINO, slope)",
     ".494 to .604, .798 to .876"},
    {"H7", "sr", "lpips_1e-5", "1e-5", LESS, ".25", 0, (double)NAN,
     "low noise in training restores held-out pictures better than the usual strong noise (LPIPS, "
     "both sampled at 1e-5)", "shown"},
    {"H8", "baselines", "dino", "dreambooth", MORE, "inversion", 0, .099,
     "fine-tuning beats textual inversion, which \"map\" saw fail (DINO)", ".668 / .569"},

    {"", "prior", "div_placed", "with", MORE, "without", 0, (double)NAN,
     "with it pictures that show the place asked for are more diverse, too (DIV)", "none"},
    {"", "prior", "div_bare", "with", MORE, "without", 0, (double)NAN,
     "and those by the bare name, where no place is asked for (DIV)", "none"},
    {"", "prior", "drift", "with", LESS, "=.15", 0, (double)NAN, "with it drift stays below .15",
     "none"},
    {"", "prior", "drift", "without", MORE, "=.5", 0, (double)NAN, "without it drift exceeds .5",
     "none"},
    {"", "prior", "dino", "without", MORE, "with", 0, .028,
     "without it the subject itself is closer (DINO)", ".712 / .684"},
    {"", "prior", "clip_i", "without", MORE, "with", 0, .013, "the same by CLIP-I",
     ".828 / .815"},
    {"", "prior", "leak_share_word_other", "with", LESS, "=.15", 0, (double)NAN,
     "the identifier with another noun brings less than .15 of the subject", "shown"},
    {"", "prior", "leak_share_word", "with", LESS, "=.15", 0, (double)NAN,
     "the identifier alone brings less than .15 of it", "said"},
    {"", "noun", "clip_i", "right", MORE, "none wrong", 0, .125, "the same by CLIP-I",
     ".853 / .607 and .728"},
    {"", "sr", "lpips_1e-5", "1e-5", LESS, "none", 0, (double)NAN,
     "fine-tuning the super-resolver brings back detail (LPIPS)", "shown"},
    {"", "sr", "lpips_as_trained", "1e-5", LESS, ".25", 0, (double)NAN,
     "the same, each sampled at the noise that it was trained at", "shown"},
    {"", "sr", "detail_1e-5", "1e-5", MORE, "none", 0, (double)NAN,
     "the restored detail is the true one (correlation)", "shown"},
    {"", "sr", "kept_1e-5", "1e-5", MORE, ".25", 0, (double)NAN,
     "strong noise in training blurs: less of the true detail", "shown"},
    {"", "sr", "lpips_1e-5", ".25", LESS, "none", 0, (double)NAN,
     "but beats no training, even at 1e-5, where it was not trained", "none"},
    {"", "baselines", "clip_t", "dreambooth", MORE, "inversion", 0, .050,
     "prompt fidelity beats textual inversion's (CLIP-T)", ".305 / .255"},
    {"", "baselines", "dino", "inversion", MORE, "@dino_original", 0, (double)NAN,
     "textual inversion learns something of the subject", "shown"},
    {"", "baselines", "dino", "dreambooth", MORE, "description", 0, (double)NAN,
     "a description does not reach the subject", "shown"},
    {"", "baselines", "place_right", "dreambooth", MORE, "sdedit-.5", 0, (double)NAN,
     "an edited photo keeps its place", "shown"},
    {"", "applications", "success_mean", "dreambooth", MORE, "=.5", 0, (double)NAN,
     "most pictures of the applications show what was asked for (mean of those that a subject has, "
     "without recontextualisation)", "shown"},
    {"", "applications", "likeness_mean", "dreambooth", MORE, "@likeness_original_mean", 0,
     (double)NAN, "and are of the subject rather than of its class (DINO)", "shown"},
    {"", "identifier", "dino", "rare", MORE, "colour", 0, (double)NAN,
     "a rare word beats a colour word", "said"},
    {"", "identifier", "dino", "rare", MORE, "letters", 0, (double)NAN,
     "a rare word beats a string that splits into letters", "said"},
    {"", "trained", "dino", "all", MORE, "attention", 0, (double)NAN,
     "training all layers beats the attention blocks alone, at one learning rate", "said"},
    {"", "trained", "dino", "all", MORE, "cross", 0, (double)NAN,
     "and the text's keys and values alone (cross-attention, as Custom Diffusion trains)", "said"},
    {"", "lambda", "pres", ".1 1 10", RISES, "-", 0, (double)NAN,
     "more weight, less drift (PRES falls)", "said"},
    {"", "class_images", "pres", "250", LESS, "5", 0, (double)NAN,
     "more class images, less drift (PRES)", "said"},
    {"", "class_guidance", "class_diversity", "1", MORE, "3", 0, (double)NAN,
     "guided class images cost diversity", "none"},
    {"", "entanglement", "bare_in_first_place", "1p1v", MORE, "np1v", 0, (double)NAN,
     "photos of one place tie the subject to it, where no place is asked for", "shown"},
    {"", "entanglement", "bare_from_front", "1p1v", MORE, "1pnv", 0, (double)NAN,
     "photos of one view tie it to that view", "shown"},
    {"", "frequency", "dino", "never", ALIKE, "first", .1, (double)NAN,
     "how often the identifier was seen does not matter, within 10 %", "none"},
    {"", "prior", "fidelity", "with", FOLLOWS, "", 0, (double)NAN,
     "subjects of frequent classes are learned better", "said"},
    {"", "first_version", "dino", "shared", MORE, "literal", 0, (double)NAN,
     "the first version's literal settings underfit this model", "none"},
    {"", "demo", "fidelity", "tuned", MORE, "=.65", 0, (double)NAN,
     "the subject is there: likeness to held-out renders, 0 the class, 1 they themselves",
     "none"},
    {"", "demo", "fidelity", "description", LESS, "=.4", 0, (double)NAN,
     "words alone do not bring it", "none"},
    {"", "demo", "nearest_right", "tuned", MORE, "=.8", 0, (double)NAN,
     "of the thirty subjects' photos its own are the nearest (DINO)", "none"},
    {"", "demo", "place_right", "tuned", MORE, "=.9", 0, (double)NAN,
     "the place is the one that was asked for", "none"},
    {"", "metrics", "follows_dino", "follow", MORE, "=.3", 0, (double)NAN,
     "DINO follows the true distance (rank correlation above .3)", ".32, with judgements"},
    {"", "metrics", "follows_dino", "follow", MORE, "@follows_clip", 0, (double)NAN,
     "DINO follows it better than CLIP-I", ".32 / .27"},
    {"", "map", "overfit@500", "all-1.5e-3", MORE, "all-1.5e-4", 0, (double)NAN,
     "a high rate overfits first (loss on unseen renders minus loss on the photos)", "said"}};
enum { CLAIMS = sizeof claims / sizeof claims[0] };

/* ---- cells ----------------------------------------------------------------------------------- */

typedef struct cell {
    const experiment *of;
    size_t condition; /* in conditions                          */
    int subject, seed; /* of the world; of training and sampling */
    int measures;      /* measures_with of the experiment and seed */
    char name[128];
    settings settings;
} cell;

static inline int world_subject_named(const char *name)
{
    int k;
    for (k = 0; k < world_n_subjects; k++)
        if (!strcmp(world_subject(k).name, name)) return k;
    return -1;
}

/* What the settings leave to method, subject and scale; equal runs get equal settings. */
static inline void settings_complete(settings *s, int subject, const scale *size)
{
    settings plain = settings_default();
    size_t k;
    int method = 0;
    for (k = 0; k < sizeof methods / sizeof *methods; k++)
        if (!strcmp(methods[k].train, s->train)) {
            method = 1;
            if (s->lr == 0) s->lr = methods[k].lr;
            if (s->steps == 0) s->steps = methods[k].steps;
        }
    if (s->photos == 0) s->photos = world_subject(subject).n_photos;
    if (s->classes == 0 || !method) s->lambda = 0;
    if (s->lambda == 0) s->classes = 0, s->class_guidance = plain.class_guidance;
    s->steps = fmin(s->steps, size->most_steps);
    s->classes = fmin(s->classes, size->most_classes);
    s->photos = fmin(s->photos, size->most_photos), s->batch = fmin(s->batch, size->most_batch);
}

/* Lists the cells of an experiment, or of all for NULL, in the order in which they are run:
   subject by subject, so that a run which stops early has whole pairs. Free with free. */
static inline cell *list_cells(const char *experiment_name, const scale *size, size_t *n)
{
    cell *all = NULL;
    size_t e, c;
    *n = 0;
    for (e = 0; e < EXPERIMENTS; e++) {
        const experiment *x = &experiments[e];
        int most = (int)fmin(x->n_subjects, size->most_subjects),
            seeds = (int)fmin(x->seeds, size->most_seeds), k, seed;
        if (experiment_name && strcmp(experiment_name, x->name)) continue;
        for (seed = 0; seed < seeds; seed++)
            for (k = 0; k < most; k++)
                for (c = 0; c < CONDITIONS; c++) {
                    cell *one;
                    if (strcmp(conditions[c].experiment, x->name)) continue;
                    all = (cell *)realloc(all, (*n + 1) * sizeof *all);
                    one = &all[(*n)++];
                    one->of = x, one->condition = c, one->seed = seed;
                    one->measures = measures_with(x, seed);
                    one->subject = world_subject_named(x->subjects[k]);
                    snprintf(one->name, sizeof one->name, "%s/%s/%s/%d", x->name,
                             conditions[c].name, x->subjects[k], seed);
                    one->settings = settings_default();
                    if (settings_change(&one->settings, conditions[c].changes)) exit(1);
                    settings_complete(&one->settings, one->subject, size);
                }
    }
    return all;
}

/* SDEdit goes only its share of the way, by DDIM: twice the steps. */
static inline size_t edit_steps(const scale *size) { return 2 * size->draw_steps; }

/* All that decides on a cell's values besides subject, seed, networks and precision. `own`: of a
   checkpoint which may have a sampler, and guidance to the end, of its own. */
static inline void cell_settings(const cell *c, const scale *size, double guidance, int own,
                                 char *out, size_t room)
{
    int edits = !strcmp(c->settings.train, "sdedit");
    char stop[32] = "own";
    size_t n;
    settings_print(&c->settings, out, room);
    n = strlen(out);
    if (!own) snprintf(stop, sizeof stop, "%g", PIXEL_GUIDANCE_STOP);
    snprintf(out + n, room - n,
             "sampler=%s/%zu guidance=%g guidance_stop=%s class_sampler=ddpm/%zu scale=%s",
             own ? "own" : edits ? "ddim" : "dpmsolver",
             edits ? edit_steps(size) : size->draw_steps, guidance, stop, size->class_steps,
             size->name);
}

/* The steps at which "map" measures: an eighth, a quarter, half and all; of few only all. */
enum { TRACES = 4 };
static inline size_t trace_step(int k, double steps)
{
    return (size_t)(steps < 8 ? steps : ceil(steps / (8 >> k)));
}

/* ---- prompts --------------------------------------------------------------------------------- */

typedef struct prompt {
    char text[128];  /* with the identifier                                              */
    char words[128]; /* without: what CLIP-T compares with                               */
    const char *group; /* "place", "bare", or an application                             */
    int place, view, style, accessory, color, other; /* what it asks for; -1: nothing    */
} prompt;

/* BEFORE a[n] ADJECTIVE WORD NOUN AFTER, where every part may be "". */
static inline void phrase(char *out, size_t size, const char *before, const char *adjective,
                          const char *word, const char *noun, const char *after)
{
    const char *first = *adjective ? adjective : *word ? word : noun;
    const char *const parts[] = {before,
                                 !*first                          ? ""
                                     : strchr("aeiou", *first) != NULL && strncmp(first, "uni", 3)
                                     ? "an"
                                     : "a",
                                 adjective, word, noun, after};
    size_t k, n = 0;
    *out = 0;
    for (k = 0; k < 6; k++)
        if (*parts[k])
            n += (size_t)snprintf(out + n, n < size ? size - n : 0, "%s%s", n ? " " : "", parts[k]);
}

/* The words of an identifier setting. */
static inline void identifier_words(const settings *s, char *out, size_t size)
{
    size_t k;
    snprintf(out, size, "%s", strcmp(s->word, "none") ? s->word : "");
    for (k = 0; out[k]; k++) out[k] = out[k] == '+' ? ' ' : out[k];
}

/* Another class than i: the one a fixed number of ranks further down. */
static inline int other_class(int i) { return (i + 5) % WORLD_CLASSES; }

/* The noun of the settings: the subject's class, another one, or "". */
static inline const char *settings_noun(const settings *s, int subject)
{
    world_subject_info info = world_subject(subject);
    if (!strcmp(s->noun, "none")) return "";
    return !strcmp(s->noun, "wrong") ? world_class_name(other_class(info.object)) : info.class_name;
}

/* Places in an order of the subject's own, those of its photos left out: prompts take the first,
   held-out renders those from HELD_OUT_PLACE on, photos of the experiment "entanglement" the last.
   Returns how many. */
enum { HELD_OUT_PLACE = 6, HELD_OUT_PLACES = 3 };
static inline size_t free_places(int subject, int out[WORLD_PLACES])
{
    world_subject_info info = world_subject(subject);
    size_t n = 0;
    int k;
    for (k = 0; k < WORLD_PLACES; k++) {
        int place = (k * 5 + subject) % WORLD_PLACES; /* 5 and 14 share no factor */
        if (place != info.places[0] && place != info.places[1]) out[n++] = place;
    }
    return n;
}

#endif
