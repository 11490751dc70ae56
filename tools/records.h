/* records.h - results that outlive the program that made them: one JSON object a line.

   A record is added under a lock and synced, so that a run which is killed leaves whole lines but
   perhaps the last; one that is cut off is passed over when it is read again. Include after
   dreambooth.h and cli.h.                                                                       */
#ifndef RECORDS_H
#define RECORDS_H

#include <fcntl.h>

enum { RECORD_VALUES = 320, RECORD_TEXT = 512 };

typedef struct record {
    char cell[128];     /* EXPERIMENT/CONDITION/SUBJECT/SEED                                */
    char key[20];       /* of settings, subject, seed and networks: equal keys, equal values */
    char networks[20];  /* hash of all weights that took part                                */
    char settings[RECORD_TEXT], command[RECORD_TEXT];
    char same_as[128];  /* the cell that computed these values, or ""                        */
    char machine[64];   /* instruction set, precision                                        */
    char labels[2048];  /* of the cell's pictures, separated by |                            */
    double seconds;
    struct { char name[40]; double value; } value[RECORD_VALUES];
    size_t n;
} record;

typedef struct records {
    record *item;
    size_t n, capacity;
} records;

/* Sets a value of a record, replacing one of that name. */
static inline void record_set(record *r, const char *name, double value)
{
    size_t k;
    for (k = 0; k < r->n && strcmp(r->value[k].name, name); k++) {}
    if (k == RECORD_VALUES) return;
    if (k == r->n) snprintf(r->value[r->n++].name, sizeof r->value[0].name, "%.39s", name);
    r->value[k].value = value;
}

/* Not a number where there is none. */
static inline double record_get(const record *r, const char *name)
{
    size_t k;
    for (k = 0; k < r->n; k++)
        if (!strcmp(r->value[k].name, name)) return r->value[k].value;
    return (double)NAN;
}

static inline void records_free(records *all)
{
    free(all->item);
    memset(all, 0, sizeof *all);
}

static inline record *records_add(records *all, const record *r)
{
    if (all->n == all->capacity) {
        all->capacity = 2 * all->capacity + 16;
        all->item = (record *)realloc(all->item, all->capacity * sizeof *all->item);
    }
    all->item[all->n] = *r;
    return &all->item[all->n++];
}

/* The newest record of a cell, or NULL. */
static inline const record *records_find(const records *all, const char *cell)
{
    size_t k;
    for (k = all->n; k-- > 0;)
        if (!strcmp(all->item[k].cell, cell)) return &all->item[k];
    return NULL;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static inline void json_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text < 32) fprintf(f, "\\u%04x", (unsigned)*text);
        else fputc(*text, f);
    }
    fputc('"', f);
}

/* Nine digits: enough to tell any two floats apart; null for what is not a number. */
static inline void json_number(FILE *f, double x)
{
    if (fabs(x) < 1e300) fprintf(f, "%.9g", x);
    else fprintf(f, "null");
}

static inline void record_write(const record *r, FILE *f)
{
    const struct { const char *name, *text; } texts[] = {
        {"cell", r->cell}, {"key", r->key}, {"networks", r->networks}, {"settings", r->settings},
        {"command", r->command}, {"same_as", r->same_as}, {"machine", r->machine},
        {"labels", r->labels}};
    size_t k;
    for (k = 0; k < sizeof texts / sizeof *texts; k++) {
        fprintf(f, "%s\"%s\": ", k ? ", " : "{", texts[k].name);
        json_text(f, texts[k].text);
    }
    fprintf(f, ", \"seconds\": %.1f, \"values\": {", r->seconds);
    for (k = 0; k < r->n; k++) {
        fprintf(f, "%s\"%s\": ", k ? ", " : "", r->value[k].name);
        json_number(f, r->value[k].value);
    }
    fprintf(f, "}}\n");
}

/* Adds a record to the file, durably, one process after the other. A line that was cut off before
   it is closed first. */
static inline int record_append(const record *r, const char *path)
{
    FILE *f = fopen(path, "ab+");
    struct flock whole;
    int bad = !f, is_cut_off;
    memset(&whole, 0, sizeof whole);
    whole.l_type = F_WRLCK; /* until the file is closed */
    while (f && (bad = fcntl(fileno(f), F_SETLKW, &whole) != 0) && errno == EINTR) {}
    if (!bad) {
        is_cut_off = fseek(f, -1, SEEK_END) == 0 && fgetc(f) != '\n';
        fseek(f, 0, SEEK_END);
        if (is_cut_off) fputc('\n', f);
        record_write(r, f);
        bad = ferror(f) || fflush(f) != 0 || fsync(fileno(f)) != 0;
    }
    if (f) bad = fclose(f) != 0 || bad;
    return bad ? fail("cannot write %s: %s", path, strerror(errno)) : 0;
}

static inline void record_read(const db_json *j, record *r)
{
    const struct { const char *name; char *text; size_t size; } texts[] = {
        {"cell", r->cell, sizeof r->cell}, {"key", r->key, sizeof r->key},
        {"networks", r->networks, sizeof r->networks},
        {"settings", r->settings, sizeof r->settings}, {"command", r->command, sizeof r->command},
        {"same_as", r->same_as, sizeof r->same_as}, {"machine", r->machine, sizeof r->machine},
        {"labels", r->labels, sizeof r->labels}};
    const db_json *v, *values = db_json_get(j, "values");
    size_t k;
    memset(r, 0, sizeof *r);
    for (k = 0; k < sizeof texts / sizeof *texts; k++)
        snprintf(texts[k].text, texts[k].size, "%s", db_json_string(j, texts[k].name, ""));
    r->seconds = db_json_number(j, "seconds", 0);
    for (v = values ? values->first : NULL; v; v = v->next)
        record_set(r, v->key, v->type == DB_JSON_NUMBER ? v->number : (double)NAN);
}

/* All records of a file, in its order; none without a file. *skipped: lines that are none. */
static inline records records_load(db_ctx *ctx, const char *path, size_t *skipped)
{
    records all;
    record *r = (record *)malloc(sizeof *r);
    FILE *f = fopen(path, "rb");
    char *text = NULL, *at, *end;
    long size = 0;
    memset(&all, 0, sizeof all);
    *skipped = 0;
    if (f && fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0) {
        rewind(f);
        text = (char *)malloc((size_t)size + 1);
        size = (long)fread(text, 1, (size_t)size, f);
    }
    if (f) fclose(f);
    for (at = text; text && at < text + size; at = end + 1) {
        const db_json *j;
        end = (char *)memchr(at, '\n', (size_t)(text + size - at));
        if (!end) end = text + size;
        j = db_json_parse(ctx, path, at, (size_t)(end - at));
        if (j) {
            record_read(j, r);
            db_json_free(j);
        }
        if (j && db_status(ctx) == DB_OK && r->cell[0]) records_add(&all, r);
        else ++*skipped;
        db_clear_error(ctx);
    }
    free(text);
    free(r);
    return all;
}

#endif
