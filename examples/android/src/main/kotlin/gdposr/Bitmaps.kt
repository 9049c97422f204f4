package gdposr

import android.graphics.Bitmap

/** The pixels of a bitmap in sRGB, turned upright beforehand: BitmapFactory does not apply a photo's EXIF orientation. */
fun Bitmap.toPicture(): Picture {
    val pixels = IntArray(width * height)
    getPixels(pixels, 0, width, 0, 0, width, height)
    return Picture(width, height, pixels)
}

fun Picture.toBitmap(): Bitmap = Bitmap.createBitmap(argb, width, height, Bitmap.Config.ARGB_8888)
