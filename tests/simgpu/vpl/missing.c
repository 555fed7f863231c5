/* The dispatcher takes no runtime in which a name of the API that it claims is missing. These are never called: neither
 * by ffmpeg nor by the dispatcher. Their arguments do not matter, so the headers stay out. */
#define MISSING(name)                                      \
    __attribute__((visibility("default"))) int name(void); \
    int name(void) { return -16; } /* MFX_ERR_NOT_IMPLEMENTED */

MISSING(MFXInit)
MISSING(MFXInitEx)
MISSING(MFXDisjoinSession)
MISSING(MFXCloneSession)
MISSING(MFXGetPriority)
MISSING(MFXSetPriority)
MISSING(MFXVideoCORE_QueryPlatform)
MISSING(MFXVideoENCODE_GetEncodeStat)
MISSING(MFXVideoDECODE_Query)
MISSING(MFXVideoDECODE_Reset)
MISSING(MFXVideoDECODE_GetVideoParam)
MISSING(MFXVideoDECODE_GetDecodeStat)
MISSING(MFXVideoDECODE_SetSkipMode)
MISSING(MFXVideoDECODE_GetPayload)
MISSING(MFXVideoVPP_QueryIOSurf)
MISSING(MFXVideoVPP_GetVideoParam)
MISSING(MFXVideoVPP_GetVPPStat)
MISSING(MFXVideoVPP_ProcessFrameAsync)
MISSING(MFXMemory_GetSurfaceForVPP)
MISSING(MFXMemory_GetSurfaceForVPPOut)
MISSING(MFXMemory_GetSurfaceForEncode)
MISSING(MFXMemory_GetSurfaceForDecode)
MISSING(MFXVideoDECODE_VPP_Init)
MISSING(MFXVideoDECODE_VPP_DecodeFrameAsync)
MISSING(MFXVideoDECODE_VPP_Reset)
MISSING(MFXVideoDECODE_VPP_GetChannelParam)
MISSING(MFXVideoDECODE_VPP_Close)
