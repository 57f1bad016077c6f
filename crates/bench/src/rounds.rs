//! Rounds that take turns, so that a slow minute of the machine meets everybody.

use crate::Failure;

/// Rounds per figure.
pub const ROUNDS: usize = 5;

/// What the rounds of one contestant gave.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Samples {
    /// The middle value; 0 without values.
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => 0.0,
            count if count.is_multiple_of(2) => (self.0[middle - 1] + self.0[middle]) / 2.0,
            _ => self.0[middle],
        }
    }

    /// How far the values lie apart: (largest − smallest) ÷ median.
    pub fn spread(&self) -> f64 {
        match (self.0.first(), self.0.last()) {
            (Some(least), Some(most)) if self.median() > 0.0 => (most - least) / self.median(),
            _ => 0.0,
        }
    }
}

/// One contestant: every call is one round, and gives one value.
pub type Contestant<'a> = &'a mut dyn FnMut() -> Result<f64, Failure>;

/// Runs the contestants in turns, each round beginning with the next one. The first round only warms up.
///
/// # Errors
/// Whatever a contestant fails with, at once.
pub fn interleaved<const N: usize>(
    contestants: [Contestant<'_>; N],
) -> Result<[Samples; N], Failure> {
    let mut values: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for round in 0..=ROUNDS {
        for turn in 0..N {
            let who = (round + turn) % N;
            let value = contestants[who]()?;
            if round > 0 {
                values[who].push(value);
            }
        }
    }
    Ok(values.map(|values| values.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_the_same_number_of_turns_and_the_first_does_not_count() {
        let (mut one, mut two) = (0.0, 100.0);
        let [first, second] = interleaved([
            &mut || {
                one += 1.0;
                Ok(one)
            },
            &mut || {
                two += 1.0;
                Ok(two)
            },
        ])
        .expect("nobody fails");
        assert_eq!(first.0, [2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(first.median(), 4.0);
        assert_eq!(first.spread(), 1.0);
        assert_eq!(second.median(), 104.0);
    }

    #[test]
    fn a_failing_contestant_ends_the_figure() {
        assert!(interleaved([&mut || Err("no".into())]).is_err());
    }
}
