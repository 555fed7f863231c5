/* The configuration file: what the device is, and what shall go wrong with it. */
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simgpu.h"

bool config_path(const char *node, char *path, size_t size) {
    const char *named = getenv("SIMGPU_CONFIG");
    struct stat is;
    if (!named || !*named || stat(named, &is) < 0) return false;
    if (!S_ISDIR(is.st_mode)) {
        snprintf(path, size, "%s", named);
        return true;
    }
    const char *base = strrchr(node, '/');
    snprintf(path, size, "%s/%s", named, base ? base + 1 : node);
    return stat(path, &is) == 0 && S_ISREG(is.st_mode);
}

void config_default(struct config *config) {
    *config = (struct config){
        .is =
            {
                .vendor = "Simulated GPU driver",
                .kernel_driver = "i915",
                .pdev = "0000:00:02.0",
                .preset_h264 = "superfast",
                .preset_hevc = "ultrafast",
                .pci_id = 0x80869a49,
                .rate_control = VA_RC_CQP | VA_RC_CBR | VA_RC_VBR | VA_RC_ICQ | VA_RC_QVBR,
                .decode = 1 << CODEC_H264 | 1 << CODEC_HEVC | 1 << CODEC_VP9,
                .encode = 1 << CODEC_H264 | 1 << CODEC_HEVC | 1 << CODEC_VP9 | 1 << CODEC_AV1,
                .ten_bit = true,
                .vpp = true,
                .overlay = true,
                .vpl = true,
                .entry_slice = true,
                .entry_lp = false,
                .packed_headers = true,
                .derive_image = true,
                .sync_buffer = true,
                .max_width = 4096,
                .max_height = 4096,
                .engines = 1,
                .vpp_engines = 1,
            },
    };
}

static uint64_t hash_of(const char *text, size_t size) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++) hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3;
    return hash ? hash : 1;
}

static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = words; (at = strcasestr(at, word)); at += length)
        if ((at == words || !isalnum((unsigned char)at[-1])) && !isalnum((unsigned char)at[length])) return true;
    return false;
}

static bool yes(const char *value) { return has_word(value, "yes") || has_word(value, "true") || !strcmp(value, "1"); }

static uint32_t rate_control_of(const char *value) {
    static const struct {
        const char *name;
        uint32_t mode;
    } modes[] = {
        {"CQP", VA_RC_CQP}, {"CBR", VA_RC_CBR}, {"VBR", VA_RC_VBR}, {"ICQ", VA_RC_ICQ}, {"QVBR", VA_RC_QVBR},
    };
    uint32_t mask = 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (has_word(value, modes[i].name)) mask |= modes[i].mode;
    return mask;
}

static unsigned codecs_of(const char *value) {
    static const char *const names[CODECS] = {"none", "h264", "hevc", "vp9", "av1"};
    unsigned mask = 0;
    for (unsigned i = CODEC_H264; i < CODECS; i++)
        if (has_word(value, names[i])) mask |= 1u << i;
    return mask;
}

static int engines_of(const char *value) {
    int count = atoi(value);
    return count < 1 ? 1 : count > MAX_ENGINES ? MAX_ENGINES : count;
}

/* "status 24 at 10 once device" */
static bool fault_of(const char *where, const char *value, struct fault *fault) {
    static const char *const actions[] = {
        [ACT_STATUS] = "status",     [ACT_HANG] = "hang", [ACT_SLOW] = "slow",     [ACT_GREEN] = "green",
        [ACT_TRUNCATE] = "truncate", [ACT_DROP] = "drop", [ACT_VANISH] = "vanish", [ACT_SEGFAULT] = "segfault",
    };
    char text[256], *rest = text, *word;
    *fault = (struct fault){.at = 1, .number = INT_MIN};
    snprintf(fault->where, sizeof fault->where, "%s", where);
    snprintf(text, sizeof text, "%s %s", where, value);
    fault->hash = hash_of(text, strlen(text));
    bool known = false;
    strsep(&rest, " ");
    while ((word = strsep(&rest, " \t"))) {
        bool taken = !*word;
        for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
            if (!strcmp(word, actions[i])) fault->action = (enum action)i, known = taken = true;
        if (!strcmp(word, "at") && rest) fault->at = strtoull(strsep(&rest, " \t"), NULL, 10), taken = true;
        else if (!strcmp(word, "once")) fault->once = taken = true;
        else if (!strcmp(word, "device")) fault->device = taken = true;
        else if (isdigit((unsigned char)word[*word == '-'])) fault->number = atoi(word), taken = true;
        if (!taken) return false;
    }
    if (fault->number == INT_MIN) fault->number = fault->action == ACT_STATUS ? VA_STATUS_ERROR_OPERATION_FAILED : 1000;
    return known;
}

enum form { TEXT, FLAG, NUMBER, RATE };

static const struct {
    const char *name;
    enum form form;
    size_t offset, size;
} keys[] = {
#define KEY(name, form)                                                                                                \
    { #name, form, offsetof(struct personality, name), sizeof(((struct personality *)0)->name) }
    KEY(vendor, TEXT),
    KEY(kernel_driver, TEXT),
    KEY(pdev, TEXT),
    KEY(preset_h264, TEXT),
    KEY(preset_hevc, TEXT),
    KEY(state, TEXT),
    KEY(proc, TEXT),
    KEY(ten_bit, FLAG),
    KEY(vpp, FLAG),
    KEY(overlay, FLAG),
    KEY(b_frames, FLAG),
    KEY(tonemap, FLAG),
    KEY(packed_headers, FLAG),
    KEY(derive_image, FLAG),
    KEY(sync_buffer, FLAG),
    KEY(broken, FLAG),
    KEY(vpl, FLAG),
    KEY(max_width, NUMBER),
    KEY(max_height, NUMBER),
    KEY(max_sessions, NUMBER),
    KEY(setup_ms, NUMBER),
    KEY(encode_rate, RATE),
    KEY(decode_rate, RATE),
    KEY(vpp_rate, RATE),
#undef KEY
};

static bool set_plain(struct personality *is, const char *key, const char *value) {
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(key, keys[i].name)) continue;
        char *field = (char *)is + keys[i].offset;
        switch (keys[i].form) {
        case TEXT: snprintf(field, keys[i].size, "%s", value); break;
        case FLAG: *(bool *)field = yes(value); break;
        case NUMBER: *(int *)(void *)field = atoi(value); break;
        case RATE: *(double *)(void *)field = atof(value); break;
        }
        return true;
    }
    return false;
}

static bool set(struct config *config, const char *key, const char *value) {
    struct personality *is = &config->is;
    if (set_plain(is, key, value)) return true;
    if (!strcmp(key, "pci_id")) is->pci_id = (uint32_t)strtoul(value, NULL, 0);
    else if (!strcmp(key, "rc")) is->rate_control = rate_control_of(value);
    else if (!strcmp(key, "decode")) is->decode = codecs_of(value);
    else if (!strcmp(key, "encode")) is->encode = codecs_of(value);
    else if (!strcmp(key, "entrypoint"))
        is->entry_slice = has_word(value, "slice"), is->entry_lp = has_word(value, "lp");
    else if (!strcmp(key, "memory")) is->memory = strtoull(value, NULL, 10) << 20;
    else if (!strcmp(key, "engines")) is->engines = engines_of(value);
    else if (!strcmp(key, "vpp_engines")) is->vpp_engines = engines_of(value);
    else if (!strcmp(key, "rate")) is->encode_rate = is->decode_rate = is->vpp_rate = atof(value);
    else if (!strncmp(key, "fault.", 6))
        return config->fault_count < MAX_FAULTS && fault_of(key + 6, value, &config->faults[config->fault_count]) &&
               ++config->fault_count;
    else return false;
    return true;
}

static char *trim(char *text) {
    while (isspace((unsigned char)*text)) text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) *--end = 0;
    return text;
}

bool config_read(const char *path, struct config *config) {
    char text[16384];
    FILE *file = fopen(path, "re");
    if (!file) return false;
    struct stat is = {0};
    fstat(fileno(file), &is);
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    config_default(config);
    config->written = (uint64_t)is.st_mtim.tv_sec * 1000000000 + (uint64_t)is.st_mtim.tv_nsec;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n"))) {
        line[strcspn(line, "#")] = 0;
        char *value = line, *key = strsep(&value, "=");
        key = trim(key);
        if (!*key) continue;
        if (!value || !set(config, key, trim(value))) fprintf(stderr, "simgpu: %s: not understood: %s\n", path, key);
    }
    if (!*config->is.state) snprintf(config->is.state, sizeof config->is.state, "%.*s.state", PATH_SIZE - 16, path);
    return true;
}

struct personality device_personality(struct device *device) {
    pthread_mutex_lock(&device->lock);
    struct stat now;
    if (*device->config_file && stat(device->config_file, &now) == 0) {
        const struct stat *then = &device->config_stat;
        bool same = now.st_ino == then->st_ino && now.st_size == then->st_size &&
                    now.st_mtim.tv_sec == then->st_mtim.tv_sec && now.st_mtim.tv_nsec == then->st_mtim.tv_nsec;
        struct config fresh;
        if (!same && config_read(device->config_file, &fresh)) {
            device->config = fresh;
            device->config_stat = now;
        }
    }
    struct personality is = device->config.is;
    pthread_mutex_unlock(&device->lock);
    return is;
}
