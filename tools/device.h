/* device.h - `--device` of the tools that have it. Include after dreambooth.h. */
#ifndef DEVICE_H
#define DEVICE_H

/* The GPU where `device` asks for it and there is one; else the CPU, with a sentence where cuda was
   asked for. 0: not a device. */
static int choose_device(const char *device, db_config *config)
{
    const char *why = "this program was built without the GPU backend (make cuda)";
    if (strcmp(device, "cuda") && strcmp(device, "cpu") && strcmp(device, "auto")) {
        fprintf(stderr, "--device takes cuda, cpu or auto, not \"%s\"\n", device);
        return 0;
    }
    if (!strcmp(device, "cpu")) return 1;
#ifdef DB_CUDA
    config->backend = db_backend_cuda(&why);
#endif
    if (!config->backend && !strcmp(device, "cuda"))
        fprintf(stderr, "warning: --device cuda: %s; the CPU is used\n", why);
    return 1;
}

#endif
