/* counting.h - a context whose memory is counted, so that every allocation can be made to fail and
   none can leak unseen; and tests that say why they failed. Include after test.h.

       for (i = 0; ; i++) {                        every allocation fails once
           counting_fail_at = counting_calls + i;
           result = ...;
           counting_fail_at = -1;
           if (result == DB_OK) break;
           ...
       }                                                                                          */
#ifndef COUNTING_H
#define COUNTING_H

static long counting_live;         /* blocks not freed */
static long counting_calls;        /* so far           */
static long counting_fail_at = -1; /* which call fails */

static void *counting_allocate(void *user, size_t bytes)
{
    void *memory = counting_calls++ == counting_fail_at ? NULL : malloc(bytes);
    (void)user;
    counting_live += memory != NULL;
    return memory;
}

static void counting_release(void *user, void *memory)
{
    (void)user;
    counting_live -= memory != NULL;
    free(memory);
}

static db_ctx *counting_context(void)
{
    db_config c = db_config_default();
    db_ctx *ctx = NULL;
    c.allocate = counting_allocate;
    c.release = counting_release;
    counting_fail_at = -1;
    if (db_create(&ctx, &c) != DB_OK) exit(2);
    return ctx;
}

/* One test; the reason is printed only when it failed. */
TEST_PRINTF(3, 4) static inline void report(int good, const char *name, const char *why, ...)
{
    char text[1024];
    va_list args;
    va_start(args, why);
    vsnprintf(text, sizeof text, why, args);
    va_end(args);
    if (good) test_check(1, name, "");
    else test_fail(name, "%s", text);
}

#endif
