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
    fn no_rounds_give_no_figure() {
        assert_eq!(Spread::of([]), None);
    }
}
