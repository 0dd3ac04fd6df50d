//! The bounded list of questions that wait for an upstream.
//!
//! When it is full the question that has waited longest gives up its seat: it is the likeliest to be one that nobody
//! will answer, and its client the likeliest to have asked anew. A flood therefore costs the flooder, not the next
//! client.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::hopes::Place;

/// The seats; entering is never refused.
#[derive(Debug)]
pub(super) struct Waiting {
    seats_max: usize,
    seats: Mutex<Seats>,
}

/// Seats in a row, those taken linked in the order of entering, those left in a list of their own.
#[derive(Debug)]
struct Seats {
    all: Vec<Taken>,
    /// The first and the last to have entered; [`NOBODY`] in an empty room.
    oldest: usize,
    newest: usize,
    /// The first seat that was left, linked by `later`.
    free: usize,
    taken_count: usize,
    next: u64,
}

/// No seat.
const NOBODY: usize = usize::MAX;

/// A seat; one that was left keeps a number that nobody has.
#[derive(Debug)]
struct Taken {
    number: u64,
    earlier: usize,
    later: usize,
    notice: Notice,
}

/// How a question hears that its seat is taken by a later one.
#[derive(Debug, Default)]
enum Notice {
    /// Not yet told how.
    #[default]
    None,
    /// A task: dropping the sender tells it.
    Task(#[expect(dead_code, reason = "it is dropped")] oneshot::Sender<()>),
    /// It waits for a reply without a task.
    Place(Place),
}

/// One question's seat, given up when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    waiting: Arc<Waiting>,
    number: SeatNumber,
}

/// Which seat, and which of those who took it one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeatNumber {
    at: usize,
    number: u64,
}

impl Seats {
    fn take(&mut self) -> SeatNumber {
        let number = self.next;
        self.next += 1;
        let taken = Taken { number, earlier: self.newest, later: NOBODY, notice: Notice::None };
        let at = self.free;
        let at = if let Some(seat) = self.all.get_mut(at) {
            self.free = seat.later;
            *seat = taken;
            at
        } else {
            self.all.push(taken);
            self.all.len() - 1
        };
        match self.all.get_mut(self.newest) {
            Some(newest) => newest.later = at,
            None => self.oldest = at,
        }
        self.newest = at;
        self.taken_count += 1;
        SeatNumber { at, number }
    }

    /// Returns the seat if whoever has this number still sits there.
    fn get(&mut self, SeatNumber { at, number }: SeatNumber) -> Option<&mut Taken> {
        self.all.get_mut(at).filter(|seat| seat.number == number)
    }

    fn leave(&mut self, seat: SeatNumber) -> Option<Notice> {
        let (at, free) = (seat.at, self.free);
        let seat = self.get(seat)?;
        let (earlier, later) = (seat.earlier, seat.later);
        let notice = std::mem::take(&mut seat.notice);
        (seat.number, seat.later) = (u64::MAX, free);
        self.free = at;
        self.taken_count -= 1;
        match self.all.get_mut(earlier) {
            Some(earlier) => earlier.later = later,
            None => self.oldest = later,
        }
        match self.all.get_mut(later) {
            Some(later) => later.earlier = earlier,
            None => self.newest = earlier,
        }
        Some(notice)
    }

    fn evict_oldest(&mut self) -> Option<Notice> {
        let at = self.oldest;
        let number = self.all.get(at)?.number;
        self.leave(SeatNumber { at, number })
    }
}

impl Waiting {
    /// Makes room for `seats_max` questions, at least one.
    pub(super) fn new(seats_max: usize) -> Arc<Self> {
        let (oldest, newest, free) = (NOBODY, NOBODY, NOBODY);
        let seats = Seats { all: Vec::new(), oldest, newest, free, taken_count: 0, next: 0 };
        Arc::new(Self { seats_max: seats_max.max(1), seats: Mutex::new(seats) })
    }

    /// Takes a seat, the oldest one if none is free.
    pub(super) fn enter(self: &Arc<Self>) -> Seat {
        let (number, evicted) = {
            let mut seats = self.seats.lock();
            let evicted = if seats.taken_count >= self.seats_max { seats.evict_oldest() } else { None };
            (seats.take(), evicted)
        };
        if let Some(Notice::Place(place)) = evicted
            && let Some(hope) = place.take()
        {
            hope.evicted();
        }
        Seat { waiting: Arc::clone(self), number }
    }

    /// Returns how many wait.
    pub(super) fn len(&self) -> usize {
        self.seats.lock().taken_count
    }

    /// Says that the question with seat `number` hears at `place` that it lost it; nothing if it has by now. One that
    /// went over to a task meanwhile hears it there.
    pub(super) fn notify_at(&self, number: SeatNumber, place: Place) {
        if let Some(Taken { notice: notice @ Notice::None, .. }) = self.seats.lock().get(number) {
            *notice = Notice::Place(place);
        }
    }

    fn notify_task(&self, number: SeatNumber, sender: oneshot::Sender<()>) {
        let before =
            self.seats.lock().get(number).map(|seat| std::mem::replace(&mut seat.notice, Notice::Task(sender)));
        // Outside of the lock: it may hold the last hand on a socket.
        drop(before);
    }
}

impl Seat {
    /// Returns the room it is in.
    pub(super) fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    /// Returns its number, for [`Waiting::notify_at`].
    pub(super) fn number(&self) -> SeatNumber {
        self.number
    }

    /// Waits until the seat is taken by a later question.
    pub(super) async fn evicted(&self) {
        let (sender, evicted) = oneshot::channel();
        self.waiting.notify_task(self.number, sender);
        let _ = evicted.await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let left = self.waiting.seats.lock().leave(self.number);
        // Outside of the lock: it may hold the last hand on a socket.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn full_room_evicts_the_oldest_only() {
        let room = Waiting::new(2);
        let first = room.enter();
        let second = room.enter();
        assert!(first.evicted().now_or_never().is_none());
        let third = room.enter();
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none());
        assert!(third.evicted().now_or_never().is_none());
        drop(first);
        assert_eq!(room.len(), 2);
        drop((second, third));
        assert_eq!(room.len(), 0);
    }

    proptest! {
        /// Whoever comes and goes, the one who gives way is always the one who has waited longest.
        #[test]
        fn the_oldest_gives_way_in_any_order_of_leaving(steps in prop::collection::vec(0usize..12, 0..200)) {
            let room = Waiting::new(5);
            let (mut seats, mut expected): (Vec<(u64, Seat)>, Vec<u64>) = (Vec::new(), Vec::new());
            for (name, step) in (0..).zip(steps) {
                // Some leave, those evicted among them; more come.
                if step < 5 && step < seats.len() {
                    let (name, _seat) = seats.remove(step);
                    expected.retain(|&other| other != name);
                } else {
                    if expected.len() == 5 {
                        expected.remove(0);
                    }
                    expected.push(name);
                    seats.push((name, room.enter()));
                }
                let sits = |seat: &Seat| room.seats.lock().get(seat.number).is_some();
                let sitting: Vec<u64> = seats.iter().filter(|(_, seat)| sits(seat)).map(|(name, _)| *name).collect();
                prop_assert_eq!(&sitting, &expected);
                prop_assert_eq!(room.len(), expected.len());
                prop_assert!(room.seats.lock().all.len() <= 5);
            }
        }
    }
}
