/* test_world - checks tools/world.h: one line per test, exit status 1 if one fails. */

#define WORLD_IMPLEMENTATION
#include "../tools/world.h"

static int passed, failed;

/* Prints the outcome of a test; the reason is shown only if it failed. */
static void check(const char *name, int ok, const char *format, ...)
{
    if (ok) {
        printf("ok %s\n", name);
        passed++;
        return;
    }
    va_list list;
    printf("FAIL %s: ", name);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("\n");
    failed++;
}

/* Root mean square difference of two pictures of n bytes. */
static double rms(const unsigned char *a, const unsigned char *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        sum += d * d;
    }
    return sqrt(sum / (double)n);
}

/* Box filter: [4h][4w][3] to [h][w][3] with h = w = size. */
static void quarter(const unsigned char *in, int size, unsigned char *out)
{
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++)
            for (int c = 0; c < 3; c++) {
                int sum = 8;
                for (int k = 0; k < 16; k++)
                    sum += in[((4 * y + k / 4) * 4 * size + 4 * x + k % 4) * 3 + c];
                out[(y * size + x) * 3 + c] = (unsigned char)(sum / 16);
            }
}

static unsigned char small_a[64 * 64 * 3], small_b[64 * 64 * 3], aux[64 * 64 * 4];
static unsigned char large[256 * 256 * 3], other[256 * 256 * 3];

static void test_determinism(void)
{
    world_scene a, b;
    char one[WORLD_CAPTION_MAX], two[WORLD_CAPTION_MAX];
    uint64_t seed = world_seed(WORLD_PRETRAIN, 12345);
    world_sample(seed, &a);
    world_sample(seed, &b);
    check("same seed, same scene", memcmp(&a, &b, sizeof a) == 0, "scenes differ");
    world_caption(&a, 3, one, sizeof one);
    world_caption(&b, 3, two, sizeof two);
    check("same seed, same caption", strcmp(one, two) == 0, "\"%s\" and \"%s\"", one, two);
    world_render(&a, 64, 0, 0, 64, 64, 3, small_a, NULL);
    world_render(&b, 64, 0, 0, 64, 64, 3, small_b, NULL);
    check("same scene, same picture", memcmp(small_a, small_b, sizeof small_a) == 0, "they differ");
}

static void test_windows(void)
{
    int bad = 0;
    for (int i = 0; i < 10; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_VALIDATION, (uint64_t)i), &s);
        s.style = (int8_t)(i % WORLD_STYLES);
        int x0 = 37 + 5 * i, y0 = 91 - 3 * i;
        world_render(&s, 256, 0, 0, 256, 256, 2, large, NULL);
        world_render(&s, 256, x0, y0, 64, 64, 2, small_a, NULL);
        for (int y = 0; y < 64; y++)
            bad += memcmp(small_a + y * 192, large + ((y0 + y) * 256 + x0) * 3, 192) != 0;
    }
    check("a window equals that part of the whole picture", bad == 0, "%d rows differ", bad);
}

static void test_downsampling(void)
{
    double worst = 0.0, sum = 0.0;
    const int n = 16;
    for (int i = 0; i < n; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_VALIDATION, (uint64_t)i), &s);
        world_render(&s, 64, 0, 0, 64, 64, 4, small_a, NULL);
        world_render(&s, 256, 0, 0, 256, 256, 2, large, NULL);
        quarter(large, 64, small_b);
        double e = rms(small_a, small_b, sizeof small_a);
        worst = e > worst ? e : worst;
        sum += e / n;
    }
    check("64 px equals 256 px downsampled", sum < 5.0 && worst < 9.0,
          "rms difference %.2f on average, %.2f at most (of 255)", sum, worst);
}

static void test_object_size(void)
{
    const int n = 300;
    int outside = 0, far_outside = 0;
    for (int i = 0; i < n; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_VALIDATION, 1000 + (uint64_t)i), &s);
        s.style = WORLD_PHOTO;
        world_render(&s, 64, 0, 0, 64, 64, 1, small_a, aux);
        int top = 64, bottom = -1;
        for (int k = 0; k < 64 * 64; k++)
            if (aux[4 * k] > 127) {
                if (k / 64 < top) top = k / 64;
                bottom = k / 64;
            }
        double height = (bottom - top + 1) / 64.0;
        outside += height < 0.53 || height > 0.87;
        far_outside += height < 0.40 || height > 0.95;
    }
    check("objects fill 55-85 % of the height", outside <= n / 25 && far_outside == 0,
          "%d of %d outside, %d far outside", outside, n, far_outside);
}

static void test_classes_distinct(void)
{
    static unsigned char masks[WORLD_CLASSES][64 * 64];
    double most_alike = 0.0;
    int a = 0, b = 0;
    for (int i = 0; i < WORLD_CLASSES; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_VALIDATION, 7), &s);
        s.object = (int8_t)i;
        s.head = s.glyph = -1;
        s.accessory = s.pose = s.expression = s.style = s.pattern = 0;
        world_set_view(&s, WORLD_SIDE, 1);
        world_render(&s, 64, 0, 0, 64, 64, 1, small_a, aux);
        for (int k = 0; k < 64 * 64; k++) masks[i][k] = aux[4 * k] > 127;
    }
    for (int i = 0; i < WORLD_CLASSES; i++)
        for (int j = 0; j < i; j++) {
            int both = 0, any = 0;
            for (int k = 0; k < 64 * 64; k++) {
                both += masks[i][k] & masks[j][k];
                any += masks[i][k] | masks[j][k];
            }
            double overlap = (double)both / (double)any;
            if (overlap > most_alike) {
                most_alike = overlap;
                a = i;
                b = j;
            }
        }
    check("silhouettes of classes differ", most_alike < 0.9, "%s and %s overlap by %.2f",
          world_class_name(a), world_class_name(b), most_alike);
}

static void test_distribution(void)
{
    const int n = 60000;
    long classes[WORLD_CLASSES] = {0}, places[WORLD_PLACES] = {0};
    int hidden = 0, hybrids = 0, styles = 0;
    double total = 0.0, worst = 0.0;
    for (int i = 0; i < n; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_PRETRAIN, (uint64_t)i), &s);
        classes[s.object]++;
        places[s.place]++;
        hybrids += s.head >= 0;
        styles += s.style != WORLD_PHOTO;
        hidden += s.head >= 0 && world__hybrid_is_hidden(s.head, s.object);
    }
    for (int i = 0; i < WORLD_CLASSES; i++) total += pow(i + 1, -0.7);
    for (int i = 0; i < WORLD_CLASSES; i++) {
        double off = (double)classes[i] / n / (pow(i + 1, -0.7) / total) - 1.0;
        worst = fabs(off) > worst ? fabs(off) : worst;
    }
    check("class frequencies fall as rank^-0.7", worst < 0.08, "off by %.1f %%", 100 * worst);
    int missing = 0;
    for (int i = 0; i < WORLD_PLACES; i++) missing += places[i] < n / WORLD_PLACES / 2;
    check("all places appear", missing == 0, "%d of them rare", missing);
    check("a few hybrids, none of the hidden pairs", hidden == 0 && hybrids > n / 50,
          "%d of %d hidden", hidden, hybrids);
    check("10-15 % of the pictures are not photos", styles > n / 10 && styles < 15 * n / 100,
          "%.1f %%", 100.0 * styles / n);
}

static void test_captions(void)
{
    const int n = 200000;
    static long rare[world_n_rare];
    int empty = 0, bare = 0, odd = 0, with_rare = 0, never = 0;
    char caption[WORLD_CAPTION_MAX];
    for (int i = 0; i < n; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_PRETRAIN, (uint64_t)(i / 4)), &s);
        world_caption(&s, (uint64_t)i, caption, sizeof caption);
        empty += !caption[0];
        bare += world_caption_is_bare(caption);
        int word = world_caption_rare(caption);
        with_rare += word >= 0;
        if (word >= 0) rare[word]++;
        size_t length = strlen(caption);
        odd += strspn(caption, "abcdefghijklmnopqrstuvwxyz0123456789, ") != length
            || strstr(caption, "  ") != NULL || (length && caption[length - 1] == ' ')
            || length > WORLD_CAPTION_MAX - 60;
    }
    check("about 10 % of the captions are empty", abs(empty - n / 10) < n / 200, "%.2f %%",
          100.0 * empty / n);
    check("at least 10 % are bare", bare >= n / 10 && bare < n / 5, "%.2f %%", 100.0 * bare / n);
    check("captions are lower case, single spaced and short", odd == 0, "%d are not", odd);
    double off = 0.0, sum = 0.0;
    for (int i = 0; i < world_n_rare; i++) {
        double expected = world_rare_frequency(i) * (n - empty);
        double sigmas = expected > 0 ? fabs((double)rare[i] - expected) / sqrt(expected) : 0.0;
        off = sigmas > off ? sigmas : off;
        sum += world_rare_frequency(i);
        if (i >= world_n_rare_shown) never += (int)rare[i];
    }
    check("rare words have their frequencies", off < 4.5 && fabs(sum - 0.08) < 1e-6,
          "off by %.1f standard deviations, sum %.4f", off, sum);
    check("the last rare words never appear", never == 0 && with_rare > 0, "%d times", never);
    int twice = 0;
    for (int i = 0; i < world_n_rare; i++)
        for (int j = 0; j < i; j++) twice += strcmp(world_rare[i], world_rare[j]) == 0;
    check("rare words are distinct", twice == 0, "%d pairs are equal", twice);
}

static void test_text(void)
{
    enum { MOST = 4000 };
    static char words[MOST][32];
    int n = 0;
    char line[WORLD_CAPTION_MAX];
    for (int i = 0; i < 40000; i++) {
        world_text(world_seed(WORLD_PRETRAIN, (uint64_t)i), line, sizeof line);
        for (char *word = strtok(line, " ,"); word; word = strtok(NULL, " ,")) {
            int k = 0;
            while (k < n && strcmp(words[k], word) != 0) k++;
            if (k > 0 && k < n) { /* frequent words drift to the front, so that finding is quick */
                char swap[32];
                memcpy(swap, words[k / 2], 32);
                memcpy(words[k / 2], words[k], 32);
                memcpy(words[k], swap, 32);
            }
            if (k == n && n < MOST) snprintf(words[n++], 32, "%s", word);
        }
    }
    check("the text has 600 to 1000 words", n >= 600 && n <= 1000, "it has %d", n);
}

static void test_seeds(void)
{
    int overlap = 0;
    for (int i = 1; i < WORLD_SPLITS; i++)
        overlap += world_seed((world_split)(i - 1), ((uint64_t)1 << 40) - 1)
                >= world_seed((world_split)i, 0);
    check("seeds of the splits are disjoint", overlap == 0, "%d overlap", overlap);
    for (int i = 0; i < world_n_subjects; i++) {
        world_scene s;
        world_subject_photo(i, 0, &s);
        int dev = i < world_n_dev;
        overlap += s.seed < world_seed(dev ? WORLD_DEV_SUBJECT : WORLD_TEST_SUBJECT, 0);
        overlap += dev && s.seed >= world_seed(WORLD_TEST_SUBJECT, 0);
    }
    check("subjects' seeds are in their splits", overlap == 0, "%d are not", overlap);
}

static void test_subjects(void)
{
    int used[WORLD_CLASSES] = {0}, classes = 0, animals = 0, wrong = 0;
    for (int i = 0; i < world_n_subjects; i++) {
        world_subject_info info = world_subject(i);
        if (i >= world_n_dev) {
            classes += !used[info.object]++;
            animals += world_is_animal(info.object);
        }
        wrong += info.n_photos < 4 || info.n_photos > 6 || info.is_dev != (i < world_n_dev);
        wrong += strncmp(info.name, info.class_name, strlen(info.class_name)) != 0;
        for (int j = 0; j < i; j++) wrong += strcmp(info.name, world_subject(j).name) == 0;
    }
    check("test subjects are of at least 12 classes", classes >= 12, "of %d", classes);
    check("9 or 10 of them are animals", animals >= 9 && animals <= 10, "%d are", animals);
    check("subjects have unique names and 4 to 6 photos", wrong == 0, "%d faults", wrong);
    check("no subject out of range", !world_subject(-1).n_photos && !world_subject(36).n_photos,
          "one was found");

    int unmarked = 0, visible = 0, invisible = 0, textured = 0;
    for (int i = 0; i < world_n_subjects; i++) {
        world_scene s, plain;
        world_subject_photo(i, 0, &s);
        plain = s;
        plain.n_marks = 0;
        plain.glyph = -1;
        world_render(&s, 64, 0, 0, 64, 64, 2, small_a, NULL);
        world_render(&plain, 64, 0, 0, 64, 64, 2, small_b, NULL);
        unmarked += rms(small_a, small_b, sizeof small_a) < 4.0;
        if (!s.texture) continue;
        plain = s;
        plain.texture = 0;
        world_render(&plain, 64, 0, 0, 64, 64, 2, small_b, NULL);
        visible += rms(small_a, small_b, sizeof small_a) > 2.5;
        if (textured++ % 4) continue; /* a quarter of them at the slower 256 px */
        world_render(&s, 256, 0, 0, 256, 256, 1, large, NULL);
        world_render(&plain, 256, 0, 0, 256, 256, 1, other, NULL);
        invisible += rms(large, other, sizeof large) < 3.0;
    }
    check("every subject's marks show at 64 px", unmarked == 0, "those of %d do not", unmarked);
    check("fine textures vanish at 64 px", visible == 0, "%d of %d do not", visible, textured);
    check("fine textures show at 256 px", invisible == 0, "%d do not", invisible);
}

/* Marks of every kind that are seen, colours that no caption names, nothing else changed. */
static void test_individuals(void)
{
    enum { N = 400, SIZE = 32 };
    unsigned char plain[SIZE * SIZE * 3], marked[SIZE * SIZE * 3];
    int kinds[4] = {0}, named = 0, hidden = 0, moved = 0;
    for (int i = 0; i < N; i++) {
        uint64_t seed = world_seed(WORLD_VALIDATION, 7000 + (uint64_t)i);
        world_scene s, was;
        char caption[WORLD_CAPTION_MAX];
        world_sample(seed, &s);
        s.accessory = WORLD_NO_ACCESSORY; /* whose colour is named */
        was = s;
        world_make_individual(&s, seed);
        for (int k = 0; k < s.n_marks; k++) kinds[s.marks[k].kind]++;
        moved += s.place != was.place || s.view != was.view || s.object != was.object
              || memcmp(s.shape, was.shape, sizeof s.shape) != 0;
        world_caption_kept(&s, seed, caption, sizeof caption);
        if (s.place != WORLD_CARPET) /* "on a red carpet" */
            for (int c = 0; c < WORLD_COLORS; c++)
                named += strstr(caption, world_color_name(c)) != NULL;
        if (i >= 24) continue;
        memcpy(was.rgb, s.rgb, sizeof s.rgb); /* the same colours without the marks */
        was.pattern = WORLD_PLAIN;
        world_render(&was, SIZE, 0, 0, SIZE, SIZE, 1, plain, NULL);
        world_render(&s, SIZE, 0, 0, SIZE, SIZE, 1, marked, NULL);
        hidden += rms(plain, marked, sizeof plain) < 0.5;
    }
    check("individuals: every kind of mark", kinds[0] && kinds[1] && kinds[2] && kinds[3],
          "%d %d %d %d", kinds[0], kinds[1], kinds[2], kinds[3]);
    check("individuals: most marks are seen", hidden <= 8, "%d of 24 show none", hidden);
    check("individuals: no caption names a colour", named == 0, "%d do", named);
    check("individuals: all else stays", moved == 0, "%d changed", moved);
}

/* The baker's dog is the same in two scenes, and not the painter's; captions say whose it is. */
static void test_owned(void)
{
    int strangers = 0, unsaid = 0;
    for (int i = 0; i < 64; i++) {
        uint64_t seed = world_seed(WORLD_VALIDATION, 8000 + (uint64_t)i);
        world_scene a, b, c;
        char caption[WORLD_CAPTION_MAX];
        int owner = 1 + i % WORLD_OWNERS;
        world_sample(seed, &a), world_sample(seed + 100, &b), world_sample(seed, &c);
        b.object = c.object = a.object;
        world_make_owned(&a, owner), world_make_owned(&b, owner);
        world_make_owned(&c, 1 + owner % WORLD_OWNERS);
        strangers += memcmp(a.shape, b.shape, sizeof a.shape)
                  || memcmp(a.rgb, b.rgb, 3 * sizeof *a.rgb)
                  || memcmp(a.marks, b.marks, (size_t)a.n_marks * sizeof *a.marks)
                  || !memcmp(a.shape, c.shape, sizeof a.shape);
        world_caption_kept(&a, seed, caption, sizeof caption);
        const char *noun = world_class_name(a.object); /* behind it nothing: a bare wording */
        const char *last = strlen(caption) > strlen(noun) ? caption + strlen(caption) - strlen(noun)
                                                          : caption;
        unsaid += !strstr(caption, world__people[owner - 1]) && strcmp(last, noun) != 0;
    }
    check("owned: the same individual in every scene", strangers == 0, "%d differ", strangers);
    check("owned: captions say whose it is", unsaid == 0, "%d do not", unsaid);
}

static void test_glyphs(void)
{
    static unsigned char painted[WORLD_GLYPHS][sizeof small_a];
    double least = 1e9;
    for (int i = 0; i < WORLD_GLYPHS; i++) {
        world_scene s;
        world_sample(world_seed(WORLD_VALIDATION, 7), &s);
        s.object = WORLD_MUG;
        s.head = -1;
        s.accessory = s.style = s.pattern = 0;
        world_set_view(&s, WORLD_FRONT, 1);
        s.glyph = (int8_t)i;
        world_render(&s, 64, 0, 0, 64, 64, 2, painted[i], NULL);
        for (int j = 0; j < i; j++) least = fmin(least, rms(painted[i], painted[j], sizeof small_a));
    }
    check("painted letters differ", least > 1.0, "rms difference of two only %.2f", least);
}

/* Writes `bytes` bytes of data to path. */
static int write_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    if (!file) return 0;
    size_t written = fwrite(data, 1, bytes, file);
    return fclose(file) == 0 && written == bytes;
}

static void test_pools(void)
{
    const char *path = "test_world.pool";
    char error[512] = "";
    world_pool pool;
    world_pool_config c = world_pool_config_default();
    c.size = 16;
    c.virtual_size = 64;
    c.count = 300; /* more than one batch */
    c.samples = 2;
    c.individuals = 40, c.owned = 20;
    c.seed = world_seed(WORLD_VALIDATION, 50);
    int written = world_pool_write(path, &c, error, sizeof error) == 0;
    int opened = written && world_pool_open(path, &pool, error, sizeof error) == 0;
    check("a pool can be written and opened", opened, "%s", error);
    if (!opened) return;

    int wrong = 0, individuals = 0, owned = 0;
    for (uint64_t i = 0; i < c.count; i++)
        individuals += pool.scenes[i].n_marks > 0, owned += pool.scenes[i].owner > 0;
    check("so many of 100 are individuals", individuals == 120, "%d of 300", individuals);
    check("so many of them are owned", owned == 60, "%d of 300", owned);
    for (uint64_t i = 0; i < c.count; i += 13) {
        world_scene s;
        unsigned char rgb[16 * 16 * 3], full[16 * 16 * 4], half[8 * 8 * 4];
        int x0, y0;
        world_sample(c.seed + i, &s);
        if (pool.scenes[i].owner) world_make_owned(&s, pool.scenes[i].owner);
        else if (pool.scenes[i].n_marks) world_make_individual(&s, c.seed + i);
        world_pool_window(pool.header, i, &x0, &y0);
        world_render(&s, 64, x0, y0, 16, 16, 2, rgb, full);
        world__halve(full, 16, half);
        wrong += memcmp(rgb, pool.rgb + i * sizeof rgb, sizeof rgb) != 0;
        wrong += memcmp(half, pool.aux + i * sizeof half, sizeof half) != 0;
        wrong += memcmp(&s, pool.scenes + i, sizeof s) != 0;
    }
    check("a pool holds its pictures, masks and scenes", wrong == 0, "%d differ", wrong);

    size_t bytes = pool.map_bytes;
    unsigned char *copy = (unsigned char *)malloc(bytes + 1);
    if (!copy) return;
    memcpy(copy, pool.map, bytes);
    copy[bytes] = 0;
    world_pool_close(&pool);
    static const size_t header_bytes[] = {0, 8, 12, 16, 20, 24, 31, 40, 48, 56, 64};
    int accepted = 0;
    for (size_t k = 0; k < sizeof header_bytes / sizeof header_bytes[0]; k++) {
        copy[header_bytes[k]] ^= 0x41;
        accepted +=
            write_file(path, copy, bytes) && world_pool_open(path, &pool, error, sizeof error) == 0;
        copy[header_bytes[k]] ^= 0x41;
    }
    check("a pool with a damaged header is refused", accepted == 0, "%d were not", accepted);
    const size_t lengths[] = {0, 10, 4095, 4096, bytes / 2, bytes - 1, bytes + 1};
    accepted = 0;
    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++)
        accepted += write_file(path, copy, lengths[k])
                 && world_pool_open(path, &pool, error, sizeof error) == 0;
    check("a pool of the wrong length is refused", accepted == 0, "%d were not", accepted);
    check("a missing pool is an error with a reason",
          world_pool_open("no such file", &pool, error, sizeof error) != 0 && error[0],
          "it is not");
    c.size = 15;
    check("an odd picture size is refused", world_pool_write(path, &c, error, sizeof error) != 0,
          "no");
    c.size = 16, c.owned = c.individuals + 1;
    check("more owned ones than individuals are refused",
          world_pool_write(path, &c, error, sizeof error) != 0, "no");
    free(copy);
    remove(path);
}

int main(void)
{
    test_determinism();
    test_windows();
    test_downsampling();
    test_object_size();
    test_classes_distinct();
    test_distribution();
    test_captions();
    test_text();
    test_seeds();
    test_subjects();
    test_glyphs();
    test_individuals();
    test_owned();
    test_pools();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
