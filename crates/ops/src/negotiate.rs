//! Which text form of the metrics an `Accept` header asks for. Pure.

/// A text form of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Its media type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Quality of one media range for both forms, 0 to 1000, and how specific the range is.
struct Range {
    text: Option<u8>,
    open: Option<u8>,
    quality: u16,
}

fn parse_range(range: &str) -> Option<Range> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let (mut quality, mut version) = (1000, None);
    for part in parts {
        let (key, value) = part.split_once('=')?;
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => {
                let q: f32 = value
                    .trim()
                    .parse()
                    .ok()
                    .filter(|q| (0.0..=1.0).contains(q))?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "0 to 1000 fits"
                )]
                let thousandths = (q * 1000.0) as u16;
                quality = thousandths;
            }
            "version" => version = Some(value.trim().trim_matches('"').to_owned()),
            _ => {}
        }
    }
    let (text, open) = match media.as_str() {
        "*/*" => (Some(0), Some(0)),
        "text/*" => (Some(1), None),
        "application/*" => (None, Some(1)),
        "text/plain" => (
            version
                .is_none_or(|version| version == "0.0.4")
                .then_some(2),
            None,
        ),
        "application/openmetrics-text" => (
            None,
            version
                .is_none_or(|version| version == "1.0.0")
                .then_some(2),
        ),
        _ => (None, None),
    };
    Some(Range {
        text,
        open,
        quality,
    })
}

/// The form that fits an `Accept` header best; Prometheus text when in doubt, which every scraper reads.
pub(crate) fn exposition(accept: Option<&str>) -> Exposition {
    let ranges: Vec<Range> = accept
        .unwrap_or("*/*")
        .split(',')
        .filter_map(parse_range)
        .collect();
    // The most specific range decides for a form; of equally specific ones the best quality.
    let quality = |specific: fn(&Range) -> Option<u8>| {
        let fitting = ranges
            .iter()
            .filter_map(|range| Some((specific(range)?, range.quality)));
        fitting.max().map_or(0, |(_, quality)| quality)
    };
    if quality(|range| range.open) > quality(|range| range.text) {
        Exposition::OpenMetrics
    } else {
        Exposition::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Exposition) {
        assert_eq!(exposition(Some(accept)), expected, "{accept}");
    }

    #[test]
    fn openmetrics_is_given_to_who_prefers_it() {
        // What current Prometheus servers send.
        check(
            "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
             text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
            Exposition::OpenMetrics,
        );
        check("application/openmetrics-text", Exposition::OpenMetrics);
        check(
            "text/plain;q=0.2, application/*;q=0.9",
            Exposition::OpenMetrics,
        );
    }

    #[test]
    fn text_is_given_to_everybody_else() {
        assert_eq!(exposition(None), Exposition::Text);
        check("*/*", Exposition::Text);
        check("text/html", Exposition::Text);
        check(
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4",
            Exposition::Text,
        );
        check(
            "application/openmetrics-text;version=2.0.0, text/plain;q=0.1",
            Exposition::Text,
        );
        check("application/openmetrics-text;q=0, */*", Exposition::Text);
        check("garbage;;;q=x", Exposition::Text);
    }
}
