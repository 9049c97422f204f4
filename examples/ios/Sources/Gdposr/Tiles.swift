/// Along one side of the photo, in LR pixels: where the window begins that the model is shown, and what its result is kept for.
public struct Span: Equatable {
    public let window: Int
    public let core: Range<Int>

    public init(window: Int, core: Range<Int>) {
        self.window = window
        self.core = core
    }
}

/// Cuts a photo into windows that the model is shown and cores, the parts of their results that are kept.
///
/// A value of the result depends on what is at most `Model.context` pixels away. So a core ends that far inside its window, except at
/// the edge of the photo, and cores meet without a seam. Nothing is blended.
public enum Tiles {
    /// A side of the photo with its last row or column repeated up to a multiple of `Model.multipleOf`.
    static func whole(_ length: Int) -> Int {
        (length + Model.multipleOf - 1) / Model.multipleOf * Model.multipleOf
    }

    /// The spans of a side of the photo. The window of a side shorter than `Model.window` goes beyond it.
    public static func spans(_ length: Int) -> [Span] {
        let end = whole(length)
        var spans: [Span] = []
        var done = 0
        while done < length {
            let first = min(max(0, done - Model.context), max(0, end - Model.window))
            let last = first + Model.window >= end ? length : first + Model.window - Model.context
            spans.append(Span(window: first, core: done..<last))
            done = last
        }
        return spans
    }
}
