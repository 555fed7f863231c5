/* Faults on command: counts the calls that a fault waits for, and does to them what it says. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "simgpu.h"

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* True while the configuration still has this line: one that is taken out ends a hang. */
static bool stands(struct device *device, uint64_t hash) {
    device_personality(device);
    pthread_mutex_lock(&device->lock);
    bool found = false;
    for (int i = 0; i < device->config.fault_count; i++) found |= device->config.faults[i].hash == hash;
    pthread_mutex_unlock(&device->lock);
    return found;
}

static bool is_about(const struct fault *fault, const char *call, const char *part) {
    char whole[64];
    snprintf(whole, sizeof whole, "%s.%s", call, part ? part : "");
    return !strcmp(fault->where, call) || !strcmp(fault->where, whole);
}

/* The faults that hit this call, copied while the configuration cannot change. */
static int hits(struct device *device, const char *call, const char *part, struct fault *hit) {
    int count = 0;
    pthread_mutex_lock(&device->lock);
    for (int i = 0; i < device->config.fault_count; i++) {
        const struct fault *fault = &device->config.faults[i];
        if (!is_about(fault, call, part)) continue;
        uint64_t calls;
        if (fault->device) {
            calls = clock_count_fault(device, i, fault->hash);
        } else {
            if (device->fault_hashes[i] != fault->hash) device->fault_calls[i] = 0;
            device->fault_hashes[i] = fault->hash;
            calls = ++device->fault_calls[i];
        }
        if (fault->once ? calls == fault->at : calls >= fault->at) hit[count++] = *fault;
    }
    pthread_mutex_unlock(&device->lock);
    return count;
}

enum fate fault_at(struct device *device, const char *call, const char *part, VAStatus *status) {
    struct fault hit[MAX_FAULTS];
    enum fate fate = FATE_FINE;
    *status = VA_STATUS_SUCCESS;
    if (device_personality(device).broken || clock_vanished(device)) {
        *status = VA_STATUS_ERROR_OPERATION_FAILED;
        return FATE_FAIL;
    }
    int count = hits(device, call, part, hit);
    for (int i = 0; i < count; i++) switch (hit[i].action) {
        case ACT_HANG:
            while (stands(device, hit[i].hash)) sleep_ms(20);
            break;
        case ACT_SLOW: sleep_ms(hit[i].number); break;
        case ACT_SEGFAULT: raise(SIGSEGV); break;
        case ACT_GREEN: fate = FATE_GREEN; break;
        case ACT_TRUNCATE: fate = FATE_TRUNCATE; break;
        case ACT_DROP: fate = FATE_DROP; break;
        case ACT_VANISH:
            clock_vanish(device);
            *status = VA_STATUS_ERROR_OPERATION_FAILED;
            return FATE_FAIL;
        case ACT_STATUS: *status = hit[i].number; return FATE_FAIL;
        }
    return fate;
}

VAStatus fault_status(struct device *device, const char *call, const char *part) {
    VAStatus status;
    fault_at(device, call, part, &status);
    return status;
}
