/* A preload library that makes libdrm, and so libva and ffmpeg, take a simulated device for a render node: any regular
 * file, and any character device that is not the kernel's own DRM. No root and no sysfs are needed. The name of the
 * kernel's driver, from which libva finds its own, is kernel_driver in the node's configuration. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xf86drm.h>

#include "simgpu.h"

#define EXPORT __attribute__((visibility("default")))

enum { DRM_MAJOR = 226 };

static bool is_ours(int fd) {
    struct stat is;
    if (fstat(fd, &is) < 0) return false;
    return S_ISREG(is.st_mode) || (S_ISCHR(is.st_mode) && major(is.st_rdev) != DRM_MAJOR);
}

static void real(const char *name, void *function, size_t size) {
    void *symbol = dlsym(RTLD_NEXT, name);
    memcpy(function, &symbol, size);
}

static char *text(const char *value, int *length) {
    *length = (int)strlen(value);
    return strdup(value);
}

EXPORT int drmGetNodeTypeFromFd(int fd) {
    if (is_ours(fd)) return DRM_NODE_RENDER;
    int (*next)(int);
    real("drmGetNodeTypeFromFd", &next, sizeof next);
    return next ? next(fd) : -1;
}

EXPORT drmVersionPtr drmGetVersion(int fd) {
    if (!is_ours(fd)) {
        drmVersionPtr (*next)(int);
        real("drmGetVersion", &next, sizeof next);
        return next ? next(fd) : NULL;
    }
    char link[64], node[PATH_SIZE] = "", file[PATH_SIZE];
    struct config *config = malloc(sizeof *config);
    drmVersionPtr version = calloc(1, sizeof *version);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, node, sizeof node - 1);
    if (config && version && size > 0) {
        if (!config_path(node, file, sizeof file) || !config_read(file, config)) config_default(config);
        version->version_major = 1;
        version->name = text(config->is.kernel_driver, &version->name_len);
        version->date = text("20200101", &version->date_len);
        version->desc = text("Simulated GPU", &version->desc_len);
    }
    free(config);
    return version;
}

EXPORT void drmFreeVersion(drmVersionPtr version) { /* libdrm's are made of the same pieces */
    if (!version) return;
    free(version->name);
    free(version->date);
    free(version->desc);
    free(version);
}
