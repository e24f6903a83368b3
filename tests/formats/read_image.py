"""read_image.py LIBRARY FILE - the guest's bytes of an image on standard output, as read by
libqcow, libvhdi or libvmdk (Debian's python3-lib*, so for Debian's python3)."""
import sys


def main(library, path):
    if library == "libvmdk":
        import pyvmdk                           # pylint: disable=import-error
        image = pyvmdk.handle()
        image.open(path)
        image.open_extent_data_files()
    elif library == "libvhdi":
        import pyvhdi                           # pylint: disable=import-error
        image = pyvhdi.open(path)
    else:
        import pyqcow                           # pylint: disable=import-error
        image = pyqcow.open(path)
    left = image.get_media_size()
    while left:
        data = image.read_buffer(min(left, 1 << 20))
        sys.stdout.buffer.write(data)
        left -= len(data)


main(*sys.argv[1:])
