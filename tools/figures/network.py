"""The network: SAM's image encoder with LoRA, class tokens in its mask decoder, and the small encoder's detail head."""

from svg import GREY, Drawing


def main() -> None:
    drawing = Drawing(700, "A slice passes SAM's image encoder with LoRA and the mask decoder with one token per class")
    drawing.box(16, 16, 330, 62, ["slice", "channels, height, width"], "grey")
    drawing.arrow((181, 78), (181, 108))
    drawing.box(16, 110, 330, 62, ["input layer", "three channels, normalised"], "grey")
    drawing.arrow((181, 172), (181, 202))
    drawing.box(16, 204, 330, 206, [""], "blue")
    drawing.text(181, 234, "image encoder", size=24, bold=True)
    drawing.text(181, 260, "ViT or TinyViT, frozen", size=22)
    drawing.box(36, 276, 290, 54, ["attention: q, k, v"], "grey")
    drawing.box(36, 342, 290, 54, ["+ LoRA on q and v"], "orange")
    drawing.arrow((181, 410), (181, 456))
    drawing.text(170, 441, "embedding", anchor="end", colour=GREY)
    drawing.box(16, 458, 330, 88, ["mask decoder", "two-way transformer", "and upscaling"], "orange")
    drawing.box(420, 458, 284, 88, ["class tokens", "background, 1, 2, ...", "one each, always learnt"], "orange")
    drawing.arrow((420, 502), (350, 502))
    drawing.box(
        420,
        204,
        284,
        116,
        ["detail head", "features of the middle", "blocks and of a stem", "(small encoder)"],
        "green",
    )
    drawing.arrow((346, 262), (418, 262), dashed=True)
    drawing.arrow((562, 320), (562, 434), (270, 434), (270, 456), dashed=True)
    drawing.arrow((181, 546), (181, 578))
    drawing.box(16, 580, 330, 62, ["logits per class", "on the original grid"], "grey")
    drawing.box(420, 580, 26, 26, [""], "orange")
    drawing.text(458, 600, "learns", anchor="start")
    drawing.box(420, 616, 26, 26, [""], "blue")
    drawing.text(458, 636, "frozen (SAM)", anchor="start")
    drawing.text(16, 682, "Dashed: the small encoder's network alone, trained in full.", anchor="start")
    drawing.save("network")


if __name__ == "__main__":
    main()
