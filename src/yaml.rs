//! Reading YAML that a person wrote: one set of strict options for every file, and places in bytes.

use std::ops::Range;

use serde::de::DeserializeOwned;
pub use serde_saphyr::Spanned;

use crate::{
    diagnostics::{Finding, SourceFile},
    json,
};

/// Parses a whole file. Duplicate keys, alias bombs, foreign tags and the booleans of YAML 1.1 (`yes`, `on`) are refused.
///
/// # Errors
/// The first problem, with its place.
pub fn read<T: DeserializeOwned>(file: &SourceFile) -> Result<T, Box<Finding>> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: json::MAX_DEPTH, max_documents: 1 },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(&file.text, options).map_err(|error| {
        let at = error
            .location()
            .map_or(0..0, |location| place(file, location));
        let text = error.without_snippet().to_string();
        // The place is the finding's own; the library repeats it in words.
        let message = text.split(" at line ").next().unwrap_or(&text);
        let message = message.trim_start_matches("error: ");
        let message = message.split('\n').next().unwrap_or(message);
        Box::new(Finding::error(
            file,
            at,
            format!("this cannot be read: {message}"),
        ))
    })
}

/// Where a value stands, as a byte range of its file.
pub fn range<T>(file: &SourceFile, value: &Spanned<T>) -> Range<usize> {
    place(file, value.referenced)
}

fn place(file: &SourceFile, location: serde_saphyr::Location) -> Range<usize> {
    let span = location.span();
    let convert = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let start = span.byte_offset().map_or_else(
        || file.offset_of(convert(location.line()), convert(location.column())),
        convert,
    );
    start..start.saturating_add(span.byte_len().map_or(0, convert))
}
