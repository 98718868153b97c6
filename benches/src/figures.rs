//! Medians and spreads of a few repeated measurements.
//!
//! The median and the extremes, not mean and deviation: rounds are few, and what disturbs one
//! (another process on the core) disturbs it a lot and in one direction.

use serde::Serialize;

/// What is left of a measurement that was repeated in several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; the mean of the two middle ones if there is no single middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of these values; `None` if there is none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }

    /// As the tables show it: median (min-max).
    #[must_use]
    pub fn cell(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.decimals$} ({min:.decimals$}-{max:.decimals$})")
    }

    /// What the ratios of this build's costs to another build's say: a difference counts once it is
    /// greater than the spread.
    #[must_use]
    pub fn beside_one(self) -> &'static str {
        if self.min > 1.0 {
            "worse"
        } else if self.max < 1.0 {
            "better"
        } else {
            "within the spread"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_does_not_move_the_median() {
        let spread = Spread::of([80.0, 81.0, 500.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 81.0,
                min: 80.0,
                max: 500.0
            }
        );
    }

    #[test]
    fn an_even_number_of_rounds_takes_the_middle_of_both() {
        assert_eq!(
            Spread::of([4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median),
            Some(2.5)
        );
    }

    #[test]
    fn a_build_is_worse_only_if_it_was_in_every_round() {
        let spread = |values: [f64; 3]| Spread::of(values).unwrap().beside_one();
        assert_eq!(spread([1.1, 1.02, 1.2]), "worse");
        assert_eq!(spread([1.1, 0.99, 1.2]), "within the spread");
        assert_eq!(spread([0.9, 0.99, 0.8]), "better");
    }

    #[test]
    fn no_rounds_give_no_figure() {
        assert_eq!(Spread::of([]), None);
    }
}
