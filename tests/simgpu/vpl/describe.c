/* What the dispatcher is told: one implementation for each device of Intel's that has the runtime, as the configuration
 * files say. No device need be open: `vpl-inspect` opens none. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vpl.h"

enum { MAX_DEVICES = 32, MAX_CODECS = 2 };

struct description {
    mfxImplDescription is; /* first: the dispatcher gives back what it was given */
    mfxAccelerationMode mode;
    struct decoder decoders[MAX_CODECS];
    struct encoder encoders[MAX_CODECS];
};

static void describe_codecs(struct description *description, const struct personality *is) {
    mfxImplDescription *to = &description->is;
    to->Dec.Version.Version = MFX_DECODERDESCRIPTION_VERSION;
    to->Dec.Codecs = description->decoders;
    if (is->decode >> CODEC_H264 & 1) description->decoders[to->Dec.NumCodecs++].CodecID = MFX_CODEC_AVC;
    if (is->decode >> CODEC_HEVC & 1) description->decoders[to->Dec.NumCodecs++].CodecID = MFX_CODEC_HEVC;
    to->Enc.Version.Version = MFX_ENCODERDESCRIPTION_VERSION;
    to->Enc.Codecs = description->encoders;
    if (is->encode >> CODEC_H264 & 1) description->encoders[to->Enc.NumCodecs++].CodecID = MFX_CODEC_AVC;
    if (is->encode >> CODEC_HEVC & 1) description->encoders[to->Enc.NumCodecs++].CodecID = MFX_CODEC_HEVC;
    to->VPP.Version.Version = MFX_VPPDESCRIPTION_VERSION;
}

static mfxHDL describe(const struct personality *is, unsigned index) {
    struct description *description = calloc(1, sizeof *description);
    if (!description) return NULL;
    mfxImplDescription *to = &description->is;
    to->Version.Version = MFX_IMPLDESCRIPTION_VERSION;
    to->Impl = MFX_IMPL_TYPE_HARDWARE;
    to->AccelerationMode = description->mode = MFX_ACCEL_MODE_VIA_VAAPI;
    to->AccelerationModeDescription.Version.Version = MFX_ACCELERATIONMODESCRIPTION_VERSION;
    to->AccelerationModeDescription.NumAccelerationModes = 1;
    to->AccelerationModeDescription.Mode = &description->mode;
    to->ApiVersion.Major = API_MAJOR, to->ApiVersion.Minor = API_MINOR;
    snprintf(to->ImplName, sizeof to->ImplName, "simgpu");
    to->VendorID = INTEL;
    to->VendorImplID = index;
    to->Dev.Version.Version = MFX_DEVICEDESCRIPTION_VERSION;
    to->Dev.MediaAdapterType = MFX_MEDIA_INTEGRATED;
    /* ffmpeg asks for the device of VADisplayPCIID in this form. */
    snprintf(to->Dev.DeviceID, sizeof to->Dev.DeviceID, "%x/%u", is->pci_id & 0xffff, index);
    describe_codecs(description, is);
    to->PoolPolicies.Version.Version = MFX_POOLPOLICYDESCRIPTION_VERSION;
    return description;
}

static void add(mfxHDL *list, mfxU32 *count, const char *file) {
    struct config *config = malloc(sizeof *config);
    bool known = config != NULL;
    if (known && file) known = config_read(file, config);
    else if (known) config_default(config);
    const struct personality *is = &config->is;
    if (known && *count < MAX_DEVICES && is->vpl && !is->broken && is->pci_id >> 16 == INTEL)
        if ((list[*count] = describe(is, *count))) ++*count;
    free(config);
}

static void add_all(mfxHDL *list, mfxU32 *count) {
    const char *named = getenv("SIMGPU_CONFIG");
    DIR *folder = named && *named ? opendir(named) : NULL;
    if (!folder) {
        add(list, count, named && *named ? named : NULL);
        return;
    }
    for (struct dirent *entry; (entry = readdir(folder));) {
        char path[PATH_SIZE];
        struct stat is;
        snprintf(path, sizeof path, "%s/%s", named, entry->d_name);
        /* A name with a dot is being written, or is no node's. */
        if (!strchr(entry->d_name, '.') && stat(path, &is) == 0 && S_ISREG(is.st_mode)) add(list, count, path);
    }
    closedir(folder);
}

/* The list is gone when its last description was given back; so says the standard. */
struct report {
    mfxHDL list[MAX_DEVICES];
    mfxU32 count, held;
    struct report *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct report *reports;

EXPORT mfxHDL *MFXQueryImplsDescription(mfxImplCapsDeliveryFormat format, mfxU32 *count) {
    if (!count) return NULL;
    *count = 0;
    struct report *report = format == MFX_IMPLCAPS_IMPLDESCSTRUCTURE ? calloc(1, sizeof *report) : NULL;
    if (!report) return NULL;
    add_all(report->list, &report->count);
    *count = report->held = report->count;
    if (!*count) {
        free(report);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    report->next = reports, reports = report;
    pthread_mutex_unlock(&lock);
    return report->list;
}

EXPORT mfxStatus MFXReleaseImplDescription(mfxHDL description) {
    if (!description) return MFX_ERR_NONE;
    pthread_mutex_lock(&lock);
    for (struct report **at = &reports, *report; (report = *at); at = &report->next) {
        mfxU32 i = 0;
        while (i < report->count && report->list[i] != description) i++;
        if (i == report->count) continue;
        report->list[i] = NULL;
        free(description);
        if (--report->held == 0) {
            *at = report->next;
            free(report);
        }
        break;
    }
    pthread_mutex_unlock(&lock);
    return MFX_ERR_NONE;
}
