/*
 * crc.c - CRC-32C (Castagnoli), a nibble at a time: only headers, region tables and
 * log entries are checksummed.
 */
#include "formats/vhdx/vhdx.h"
#include <string.h>

#define CHECKSUM 4          /* where all structures have theirs */

static uint32_t crc_update(uint32_t crc, const uint8_t *p, size_t len)
{
    static const uint32_t table[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362,
        0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab,
        0xe330a81a, 0xf36e6f75,
    };
    while (len--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return crc;
}

uint32_t vhdx_crc(const uint8_t *buf, size_t len)
{
    static const uint8_t zero[4];
    uint32_t crc = crc_update(~0u, buf, CHECKSUM);
    crc = crc_update(crc, zero, sizeof(zero));
    return ~crc_update(crc, buf + CHECKSUM + 4, len - CHECKSUM - 4);
}

bool vhdx_crc_valid(const uint8_t *buf, size_t len)
{
    return le32(buf + CHECKSUM) == vhdx_crc(buf, len);
}

void vhdx_crc_seal(uint8_t *buf, size_t len)
{
    put_le32(buf + CHECKSUM, vhdx_crc(buf, len));
}
