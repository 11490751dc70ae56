/* threads.h - keeps waiting OpenMP threads from spinning.

   libgomp's threads spin for milliseconds before they sleep, which beside another busy program
   makes thousands of small parallel loops many times slower. It reads its environment before main:
   so a program sets it and starts again, once. Who sets one of these variables himself has the last
   word. */
#ifndef THREADS_H
#define THREADS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

/* To be called first in main. */
static inline void let_threads_sleep(char **argv)
{
#if (defined(__unix__) || defined(__APPLE__)) && defined(_OPENMP)
    char path[4096]; /* not simply argv[0], which PATH may have found elsewhere */
    ssize_t n;
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") ||
        setenv("GOMP_SPINCOUNT", "1000", 1))
        return;
    n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n > 0) path[n] = 0;
    else snprintf(path, sizeof path, "%s", strchr(argv[0], '/') ? argv[0] : "");
    execv(path, argv); /* returns only if that fails, and then slow is all it is */
#else
    (void)argv;
#endif
}

#endif
