//! What the fuzz target `sasl` checks, on a bounded number of scripts.

use portcullis_tests::wild_sasl;
use proptest::prelude::*;

#[test]
fn seeds_hold() {
    for seed in wild_sasl::SEEDS {
        assert_eq!(wild_sasl::check(seed), Ok(()), "{}", seed.escape_ascii());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn responses_that_may_be_anything_lead_to_an_end_and_to_no_user(
        script in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert_eq!(wild_sasl::check(&script), Ok(()));
    }

    #[test]
    fn scripts_that_are_nearly_right_do_as_well(
        seed in 0..wild_sasl::SEEDS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut script = wild_sasl::SEEDS[seed].to_vec();
        for (at, octet) in changes {
            let at = at.index(script.len());
            script[at] = octet;
        }
        script.truncate(cut.index(script.len() + 1));
        prop_assert_eq!(wild_sasl::check(&script), Ok(()));
    }
}
