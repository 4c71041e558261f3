"""Small valid files of every kind that is read: what the fuzzer mutates."""

import bz2
import gzip
import json

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image as pillow

SPACE = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1.5,0) (0,0,3)\nspace origin: (1,2,3)\n"


def write_seeds(folder):
    """One folder per kind with its files; the first in its name's order is mutated, others lie beside it."""
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 200, (3, 6, 5)).astype(np.int16)
    picture = rng.integers(0, 255, (9, 8, 3)).astype(np.uint8)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((1.0, -2.0, 30.0))
    colours = sitk.GetImageFromArray(np.stack([volume] * 3, axis=-1), isVector=True)

    def new(kind):
        (folder / kind).mkdir(parents=True)
        return folder / kind / "a"

    def itk(kind, ending, what=image, packed=False):
        sitk.WriteImage(what, f"{new(kind)}{ending}", packed)

    def plain(kind, ending, content):
        new(kind).with_suffix(ending).write_bytes(content)

    def tiff(kind, array, ending=".tif", **options):
        tifffile.imwrite(f"{new(kind)}{ending}", array, **options)

    def picture_of(kind, ending, array=picture, **options):
        pillow.fromarray(array).save(f"{new(kind)}{ending}", **options)

    for ending in (".nii", ".nii.gz", ".mha", ".nrrd", ".gipl", ".gipl.gz", ".mhd", ".nhdr"):
        itk(f"itk{ending}", ending)
    for ending in (".mha", ".nrrd", ".mhd"):
        itk(f"packed{ending}", ending, packed=True)
        itk(f"vector{ending}", ending, colours)
    nibabel.save(nibabel.Nifti2Image(volume.T, np.diag([1, 2, 3, 1])), f"{new('nifti2')}.nii")
    scaled = nibabel.Nifti1Image(volume.T, np.diag([1, 2, 3, 1]))
    scaled.header.set_slope_inter(2, 1)
    nibabel.save(scaled, f"{new('scaled')}.nii.gz")
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 5 6 3\nendian: little\n{SPACE}"
    plain("text.nrrd", ".nrrd", f"{header}encoding: ascii\n\n{' '.join(map(str, volume.ravel()))}".encode())
    plain("bzip2.nrrd", ".nrrd", f"{header}encoding: bzip2\n\n".encode() + bz2.compress(volume.tobytes()))
    plain("crop.nrrd", ".nrrd", f"{header}encoding: gzip\n\n".encode() + gzip.compress(volume.tobytes()))
    plain("old.nrrd", ".nrrd", header.replace(SPACE, "spacings: 1 2 3\naxis mins: 0 0 0\n").encode()
          + b"encoding: raw\n\n" + volume.tobytes())  # fmt: skip
    segments = "".join(
        f"Segment{number}_{key}:={value}\n"
        for number in range(2)
        for key, value in (("Name", f"part {number}"), ("LabelValue", 1), ("Layer", number), ("Extent", "0 4 0 5 0 2"))
    )
    layers = (np.stack([volume > 100, volume < 50], axis=-1)).astype(np.uint8)
    plain("layers.seg.nrrd", ".seg.nrrd", (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nsizes: 2 5 6 3\nkinds: list domain domain domain\n"
        f"{SPACE.replace('directions: ', 'directions: none ')}encoding: gzip\n{segments}\n"
    ).encode() + gzip.compress(layers.tobytes()))  # fmt: skip
    plain("text.mha", ".mha", (
        "ObjectType = Image\nNDims = 3\nDimSize = 5 6 3\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
        f"BinaryData = False\nElementDataFile = LOCAL\n{' '.join(map(str, volume.ravel()))}"
    ).encode())  # fmt: skip
    tiff("stack", volume, photometric="minisblack", metadata={"axes": "ZYX"})
    tiff("zlib", volume, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"})
    tiff("rgb", picture, photometric="rgb")
    tiff("imagej", volume.astype(np.uint16), imagej=True, metadata={"axes": "ZYX"})
    tiff("big", volume, bigtiff=True, photometric="minisblack")
    tiff("tiled", rng.integers(0, 9, (40, 40)).astype(np.uint8), tile=(16, 16), compression="lzma")
    tiff("ome", volume, ".ome.tif", photometric="minisblack", metadata={"axes": "ZYX"})
    pillow.fromarray(picture).save(f"{new('lzw')}.tif", compression="tiff_lzw")
    pillow.fromarray(picture).save(f"{new('packbits')}.tif", compression="packbits")
    for ending in (".png", ".jpg", ".bmp"):
        picture_of(f"rgb{ending}", ending)
        picture_of(f"grey{ending}", ending, picture[..., 0])
    picture_of("sixteen", ".png", volume[0].astype(np.uint16))
    picture_of("alpha", ".png", np.dstack([picture, np.full((9, 8), 255, np.uint8)]))
    pillow.fromarray(picture).convert("P").save(f"{new('palette')}.png")
    file = new("sidecar")
    tifffile.imwrite(f"{file}.tif", volume, photometric="minisblack")
    file.with_suffix(".json").write_text(json.dumps({"spacing": [3, 1, 1]}))


def write_dicom(folder):
    """A series of three slices; mutated as the others are, by its first file."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    (folder / "dicom").mkdir(parents=True)
    for z in range(3):
        slice_ = sitk.GetImageFromArray(np.full((1, 6, 5), z, np.int16))
        tags = {"0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0020|0013": str(z + 1)}
        tags |= {"0020|0032": f"0\\0\\{3 * z}", "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-5", "0028|1053": "2"}
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / "dicom" / f"{z}.dcm"))
        writer.Execute(slice_)
