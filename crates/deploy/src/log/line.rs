//! From bytes as they arrive to redacted lines. Pure.

use volary_kernel::secret::Redactor;

/// Longest line written as one, bytes; a longer one is split.
pub const MAX_LINE: usize = 64 << 10;
/// Kept back at a split so that a secret across it is still seen whole, bytes: no secret is longer.
const LOOK_AHEAD: usize = 16 << 10;

/// Assembles lines of one stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// Something was dropped inside a line: what is left of it must not be shown.
    skip_to_line_end: bool,
}

impl Lines {
    /// Takes bytes; calls `emit(text, partial)` for each line, redacted.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        redactor: &Redactor,
        mut emit: impl FnMut(&[u8], bool),
    ) {
        if self.skip_to_line_end {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                return;
            };
            self.skip_to_line_end = false;
            bytes = &bytes[end + 1..];
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            self.split_long(redactor, &mut emit);
            if piece.ends_with(b"\n") {
                self.pending.pop();
                self.end_line(redactor, &mut emit);
            }
        }
    }

    /// Emits what has no line end yet.
    pub(super) fn finish(&mut self, redactor: &Redactor, mut emit: impl FnMut(&[u8], bool)) {
        if !self.pending.is_empty() {
            self.end_line(redactor, &mut emit);
        }
    }

    /// Drops bytes instead; says how many lines ended in them.
    pub(super) fn drop_bytes(&mut self, bytes: &[u8]) -> u64 {
        self.pending.clear();
        if let Some(last) = bytes.last() {
            self.skip_to_line_end = *last != b'\n';
        }
        bytes.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    fn end_line(&mut self, redactor: &Redactor, emit: &mut impl FnMut(&[u8], bool)) {
        let line = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
        emit(&redactor.redact_bytes(line), false);
        self.pending.clear();
    }

    fn split_long(&mut self, redactor: &Redactor, emit: &mut impl FnMut(&[u8], bool)) {
        while self.pending.len() > MAX_LINE + LOOK_AHEAD {
            // What is redacted stays redacted in the rest; a secret cut off by the end of the rest is not
            // whole yet and will be found when more has come.
            let mut redacted = redactor.redact_bytes(&self.pending).into_owned();
            let rest = redacted.split_off(MAX_LINE.min(redacted.len()));
            emit(&redacted, true);
            self.pending = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use volary_kernel::secret::Secret;

    fn run(chunks: &[&[u8]], redactor: &Redactor) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut emit = |text: &[u8], partial| out.push((text.to_vec(), partial));
        for chunk in chunks {
            lines.push(chunk, redactor, &mut emit);
        }
        lines.finish(redactor, &mut emit);
        out
    }

    fn canary() -> Redactor {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("canary-4711")).unwrap();
        redactor
    }

    #[test]
    fn a_secret_split_over_reads_is_redacted() {
        let out = run(&[b"key=cana", b"ry-47", b"11 end\n"], &canary());
        assert_eq!(out, [(b"key=[redacted] end".to_vec(), false)]);
    }

    #[test]
    fn a_secret_across_the_split_of_a_long_line_is_redacted() {
        for offset in 0..12 {
            let mut line = vec![b'x'; MAX_LINE - offset];
            line.extend_from_slice(b"canary-4711");
            line.extend(vec![b'y'; LOOK_AHEAD * 2]);
            line.push(b'\n');
            let out = run(&[&line], &canary());
            let whole = out
                .iter()
                .flat_map(|(text, _)| text.clone())
                .collect::<Vec<_>>();
            assert!(!canary().contains(&whole), "offset {offset}");
            assert!(
                !whole.windows(4).any(|w| w == b"4711" || w == b"cana"),
                "offset {offset}"
            );
        }
    }

    #[test]
    fn the_rest_of_a_line_that_was_dropped_in_part_is_not_shown() {
        let redactor = canary();
        let mut lines = Lines::default();
        assert_eq!(lines.drop_bytes(b"one\nkey=cana"), 1);
        let mut out = Vec::new();
        lines.push(b"ry-4711\nnext\n", &redactor, |text, _| {
            out.push(text.to_vec())
        });
        assert_eq!(out, [b"next".to_vec()]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_reads_are_cut(
            text in "[a-c\n]{0,200}",
            cuts in proptest::collection::vec(0usize..200, 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&chunks, &canary()), run(&[bytes], &canary()));
        }

        #[test]
        fn no_line_is_longer_than_the_bound(length in 0usize..300_000) {
            let line = vec![b'z'; length];
            let out = run(&[&line], &canary());
            prop_assert!(out.iter().all(|(text, _)| text.len() <= MAX_LINE + LOOK_AHEAD));
            prop_assert_eq!(out.iter().map(|(text, _)| text.len()).sum::<usize>(), length);
        }
    }
}
