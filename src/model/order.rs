//! Owns putting things in order where there are few of them, or rarely.
//!
//! Never: where it is measured. The library's sorts are faster, and each type that they are
//! used for makes the binary 4 KB larger; a heap takes a tenth of that. So do maps: to collect
//! one sorts first, to extend one does not.

use std::collections::{BTreeMap, BTreeSet};

/// Sorts; things with the same key come in any order.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let count = items.len();
    for root in (0..count / 2).rev() {
        sink(items, root, &key);
    }
    for end in (1..count).rev() {
        items.swap(0, end);
        sink(&mut items[..end], 0, &key);
    }
}

/// Lets an item of a heap sink to where nothing below it is larger.
fn sink<T, K: Ord>(heap: &mut [T], mut root: usize, key: &impl Fn(&T) -> K) {
    loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < heap.len() && key(&heap[child]) > key(&heap[largest]) {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        heap.swap(root, largest);
        root = largest;
    }
}

/// Sorts, and leaves each once.
pub fn distinct<T: Ord + Copy>(items: &mut Vec<T>) {
    sort_by_key(items, |item| *item);
    items.dedup();
}

/// A map of what comes; the last of a key counts.
pub fn map_of<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(items);
    map
}

/// A set of what comes.
pub fn set_of<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    set.extend(items);
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_is_that_of_the_library(items in proptest::collection::vec(0u8..20, 0..60)) {
            let mut expected = items.clone();
            expected.sort_unstable();
            let mut sorted = items.clone();
            sort_by_key(&mut sorted, |item| *item);
            prop_assert_eq!(&sorted, &expected);
            expected.dedup();
            let mut once = items.clone();
            distinct(&mut once);
            prop_assert_eq!(&once, &expected);
            prop_assert!(set_of(items.iter().copied()).into_iter().eq(expected));
            let map = map_of(items.iter().copied().zip(0..));
            prop_assert_eq!(map, items.iter().copied().zip(0..).collect::<BTreeMap<_, _>>());
        }
    }
}
