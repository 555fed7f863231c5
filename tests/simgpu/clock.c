/* What the processes that open a device share: its engines and their time, sessions, memory, counters.
 *
 * The state folder holds
 *   device        the shared memory below. Byte 0 is locked by who changes it, byte 1 + n while client n lives; these
 *                 are open file description locks, which end with the process, however it ends.
 *   clients/N     the counters of client N, in the words of i915's fdinfo. Removed when the client closes the device;
 *                 that of a killed one is removed by the next client that opens the device or asks for a session.
 *   proc/PID/     fd/M and fdinfo/M as in /proc, links to the node and to clients/N. Several devices may have one such
 *                 folder elsewhere, and one device several: processes in different containers have the same PIDs.
 *
 * Nobody holds anything while an engine works: a picture is booked, and who wants its result waits until its time. A
 * client has at most QUEUE_DEPTH pictures booked a context, so that is what a killed one leaves behind in the queue.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "simgpu.h"

enum { MAX_CLIENTS = 256 };

struct client {
    uint64_t id, memory;
    uint32_t sessions[3], pid, fd;
};

struct shared {
    uint64_t layout; /* LAYOUT, or the memory is of another version of the driver */
    uint64_t next_client, vanished;
    int64_t free_at[2][MAX_ENGINES];
    struct {
        uint64_t hash, calls;
    } faults[MAX_FAULTS];
    struct client clients[MAX_CLIENTS];
};

enum { LAYOUT = 1 << 24 | sizeof(struct shared) };

int64_t clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void clock_wait(struct device *device, int64_t until) {
    (void)device;
    struct timespec then = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    if (until > clock_now())
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL) == EINTR) {}
}

static bool lock_byte(struct device *device, int command, int type, off_t byte) {
    struct flock lock = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int result;
    while ((result = fcntl(device->state_fd, command, &lock)) < 0 && errno == EINTR) {}
    if (command == F_OFD_GETLK) return result == 0 && lock.l_type != F_UNLCK;
    return result == 0;
}

static void enter(struct device *device) {
    pthread_mutex_lock(&device->clock_lock);
    if (device->state_fd >= 0) lock_byte(device, F_OFD_SETLKW, F_WRLCK, 0);
}

static void leave(struct device *device) {
    if (device->state_fd >= 0) lock_byte(device, F_OFD_SETLK, F_UNLCK, 0);
    pthread_mutex_unlock(&device->clock_lock);
}

static void folder_of(struct device *device, char *folder) { /* client_file is <folder>/clients/N */
    snprintf(folder, PATH_SIZE, "%.*s", PATH_SIZE - 1, device->client_file);
    for (int i = 0; i < 2; i++) *strrchr(folder, '/') = 0;
}

static void counters_of(struct device *device, const struct client *client, char *path) {
    folder_of(device, path);
    size_t length = strlen(path);
    snprintf(path + length, PATH_SIZE + 64 - length, "/clients/%llu", (unsigned long long)client->id);
}

static bool make_folder(const char *path) {
    return (mkdir(path, 0777) == 0 && chmod(path, 0777) == 0) || errno == EEXIST; /* clients may be several users */
}

static bool link_to(const char *target, const char *path) {
    unlink(path);
    return symlink(target, path) == 0;
}

static void link_proc(struct device *device, const struct client *client) {
    char process[PATH_SIZE + 96], path[PATH_SIZE + 128], counters[PATH_SIZE + 64];
    if (!*device->proc) return;
    counters_of(device, client, counters);
    snprintf(process, sizeof process, "%s/%u", device->proc, client->pid);
    bool linked = false; /* the process may be closing another device meanwhile, and the folders go */
    for (int i = 0; i < 10 && !linked; i++) {
        make_folder(process);
        snprintf(path, sizeof path, "%s/fd", process), make_folder(path);
        snprintf(path, sizeof path, "%s/fdinfo", process), make_folder(path);
        snprintf(path, sizeof path, "%s/fd/%u", process, client->fd), linked = link_to(device->node, path);
        snprintf(path, sizeof path, "%s/fdinfo/%u", process, client->fd), linked &= link_to(counters, path);
    }
}

static void unlink_proc(struct device *device, const struct client *client) {
    char process[PATH_SIZE + 96], path[PATH_SIZE + 128], counters[PATH_SIZE + 64], target[PATH_SIZE + 64];
    if (!*device->proc) return;
    counters_of(device, client, counters);
    snprintf(process, sizeof process, "%s/%u", device->proc, client->pid);
    snprintf(path, sizeof path, "%s/fdinfo/%u", process, client->fd);
    ssize_t size = readlink(path, target, sizeof target - 1);
    target[size > 0 ? size : 0] = 0;
    if (strcmp(target, counters) != 0) return; /* a process of this container that has the dead one's numbers */
    unlink(path);
    snprintf(path, sizeof path, "%s/fd/%u", process, client->fd), unlink(path);
    snprintf(path, sizeof path, "%s/fd", process), rmdir(path);
    snprintf(path, sizeof path, "%s/fdinfo", process), rmdir(path);
    rmdir(process);
}

static void forget(struct device *device, struct client *client) {
    char path[PATH_SIZE + 64];
    counters_of(device, client, path);
    unlink(path);
    unlink_proc(device, client);
    *client = (struct client){0};
}

static void bury_the_dead(struct device *device) {
    if (device->state_fd < 0) return;
    bool alive = false;
    for (int i = 0; i < MAX_CLIENTS; i++) {
        struct client *client = &device->shared->clients[i];
        if (client->id && i != device->slot && !lock_byte(device, F_OFD_GETLK, F_WRLCK, 1 + i)) forget(device, client);
        alive |= client->id != 0;
    }
    if (!alive) memset(device->shared->free_at, 0, sizeof device->shared->free_at); /* maybe of before a reboot */
}

/* Padded to one size, so that a reader never sees the end of an older text. */
static void publish(struct device *device, const struct personality *is) {
    if (device->client_fd < 0 || !device->client) return;
    const struct client *client = &device->shared->clients[device->slot];
    char text[1024];
    int size = snprintf(text, sizeof text,
                        "pos:\t0\nflags:\t02100002\n"
                        "drm-driver:\t%s\ndrm-client-id:\t%llu\ndrm-pdev:\t%s\n"
                        "drm-total-system0:\t%llu KiB\ndrm-resident-system0:\t%llu KiB\n"
                        "drm-engine-render:\t0 ns\ndrm-engine-copy:\t0 ns\n"
                        "drm-engine-video:\t%lld ns\ndrm-engine-capacity-video:\t%d\n"
                        "drm-engine-video-enhance:\t%lld ns\ndrm-engine-capacity-video-enhance:\t%d\n"
                        "simgpu-pid:\t%u\nsimgpu-sessions:\t%u\n",
                        is->kernel_driver, (unsigned long long)device->client, is->pdev,
                        (unsigned long long)client->memory >> 10, (unsigned long long)client->memory >> 10,
                        (long long)device->busy[ENGINE_VIDEO], is->engines, (long long)device->busy[ENGINE_ENHANCE],
                        is->vpp_engines, client->pid, client->sessions[WORK_ENCODE]);
    if (pwrite(device->client_fd, text, (size_t)size, 0) != size || ftruncate(device->client_fd, size) < 0) return;
}

static void *map(int fd) {
    void *memory = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE,
                        fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static bool join(struct device *device) { /* a place among the clients */
    for (device->slot = 0; device->slot < MAX_CLIENTS; device->slot++)
        if (!device->shared->clients[device->slot].id && lock_byte(device, F_OFD_SETLK, F_WRLCK, 1 + device->slot))
            break;
    if (device->slot == MAX_CLIENTS) return false;
    device->client = ++device->shared->next_client;
    device->shared->clients[device->slot] =
        (struct client){.id = device->client, .pid = (uint32_t)getpid(), .fd = (uint32_t)device->drm_fd};
    return true;
}

/* The folders of what is shared, by names that hold from wherever a link leads to them. */
static bool make_folders(struct device *device) {
    char folder[PATH_SIZE], path[PATH_SIZE + 64];
    const struct personality *is = &device->config.is;
    if (!make_folder(is->state) || !realpath(is->state, folder)) return false;
    snprintf(device->client_file, sizeof device->client_file, "%s/clients/0", folder);
    snprintf(path, sizeof path, "%s/clients", folder);
    if (!make_folder(path)) return false;
    snprintf(path, sizeof path, "%s/proc", folder);
    snprintf(device->proc, sizeof device->proc, "%s", *is->proc ? is->proc : path);
    if (!make_folder(device->proc)) *device->proc = 0; /* a container that nobody looks at */
    return true;
}

bool clock_open(struct device *device) {
    char folder[PATH_SIZE], path[PATH_SIZE + 64];
    pthread_mutex_init(&device->clock_lock, NULL);
    device->state_fd = device->client_fd = -1;
    device->process = getpid();
    if (!*device->config.is.state) { /* no configuration: a device of this process alone */
        device->client = 1;
        return (device->shared = map(-1)) != NULL;
    }
    if (!make_folders(device)) return false;
    folder_of(device, folder);
    snprintf(path, sizeof path, "%s/device", folder);
    device->state_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (device->state_fd < 0) return false;
    struct stat is;
    if (fstat(device->state_fd, &is) < 0) return false;
    if (is.st_uid == geteuid()) fchmod(device->state_fd, 0666);
    if (is.st_size < (off_t)sizeof(struct shared) && ftruncate(device->state_fd, sizeof(struct shared)) < 0)
        return false;
    if (!(device->shared = map(device->state_fd))) return false;
    device->slot = -1;
    enter(device);
    if (device->shared->layout != LAYOUT) *device->shared = (struct shared){.layout = LAYOUT};
    bury_the_dead(device);
    bool joined = join(device);
    if (joined) {
        snprintf(device->client_file, sizeof device->client_file, "%.*s/clients/%llu", PATH_SIZE - 1, folder,
                 (unsigned long long)device->client);
        device->client_fd = open(device->client_file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        link_proc(device, &device->shared->clients[device->slot]);
        struct personality is_now = device->config.is;
        publish(device, &is_now);
    }
    leave(device);
    return joined;
}

void clock_leave(struct device *device) {
    if (device->state_fd < 0 || !device->client || device->process != getpid()) return;
    if (pthread_mutex_trylock(&device->clock_lock) != 0) return; /* a thread was stopped in the middle */
    lock_byte(device, F_OFD_SETLKW, F_WRLCK, 0);
    forget(device, &device->shared->clients[device->slot]);
    device->client = 0;
    leave(device);
}

void clock_close(struct device *device) {
    clock_leave(device);
    if (device->client_fd >= 0) close(device->client_fd);
    if (device->state_fd >= 0) close(device->state_fd);
    if (device->shared) munmap(device->shared, sizeof(struct shared));
    pthread_mutex_destroy(&device->clock_lock);
}

int64_t clock_book(struct device *device, struct line *line, enum work work, int64_t pixels, int64_t after) {
    struct personality is = device_personality(device);
    enum engine kind = work == WORK_PROCESS ? ENGINE_ENHANCE : ENGINE_VIDEO;
    double rate = work == WORK_DECODE ? is.decode_rate : work == WORK_ENCODE ? is.encode_rate : is.vpp_rate;
    int engines = kind == ENGINE_VIDEO ? is.engines : is.vpp_engines;
    int64_t cost = rate > 0 ? (int64_t)((double)pixels / rate * 1e9) : 0;
    clock_wait(device, line->recent[line->next % QUEUE_DEPTH]);
    enter(device);
    int64_t *free_at = device->shared->free_at[kind], *earliest = free_at, now = clock_now();
    for (int i = 1; i < engines; i++)
        if (free_at[i] < *earliest) earliest = &free_at[i];
    *earliest = (*earliest > now ? *earliest : now) + cost;
    /* The engine's time is taken as soon as it has some. The result comes after what it is made of, and the pictures
     * of one context come one after the other. */
    int64_t ready = *earliest;
    int64_t ordered = (line->last > after ? line->last : after) + cost;
    if (ordered > ready) ready = ordered;
    device->busy[kind] += cost;
    publish(device, &is);
    leave(device);
    line->last = ready;
    line->recent[line->next++ % QUEUE_DEPTH] = ready;
    return ready;
}

bool clock_session(struct device *device, enum work work, int change) {
    struct personality is = device_personality(device);
    enter(device);
    if (change > 0) bury_the_dead(device);
    uint32_t open = 0;
    for (int i = 0; i < MAX_CLIENTS; i++) open += device->shared->clients[i].sessions[WORK_ENCODE];
    bool granted = change < 0 || work != WORK_ENCODE || !is.max_sessions || (int)open < is.max_sessions;
    if (granted && device->client) device->shared->clients[device->slot].sessions[work] += (uint32_t)change;
    publish(device, &is);
    leave(device);
    if (granted && change > 0 && is.setup_ms) clock_wait(device, clock_now() + is.setup_ms * INT64_C(1000000));
    return granted;
}

bool clock_memory(struct device *device, int64_t change) {
    struct personality is = device_personality(device);
    enter(device);
    if (change > 0 && is.memory) bury_the_dead(device);
    uint64_t used = 0;
    for (int i = 0; i < MAX_CLIENTS; i++) used += device->shared->clients[i].memory;
    bool granted = change < 0 || !is.memory || used + (uint64_t)change <= is.memory;
    if (granted && device->client) device->shared->clients[device->slot].memory += (uint64_t)change;
    publish(device, &is);
    leave(device);
    return granted;
}

uint64_t clock_count_fault(struct device *device, int index, uint64_t hash) {
    enter(device);
    if (device->shared->faults[index].hash != hash) device->shared->faults[index].calls = 0;
    device->shared->faults[index].hash = hash;
    uint64_t calls = ++device->shared->faults[index].calls;
    leave(device);
    return calls;
}

void clock_vanish(struct device *device) { device->shared->vanished = device->config.written; }

bool clock_vanished(struct device *device) {
    return device->shared->vanished && device->shared->vanished == device->config.written;
}
