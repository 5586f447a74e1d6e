// Package session keeps the live sessions: it finds them by id, has their credentials verified again in time, renews them,
// ends them, and tells what each was when it is over.
//
//	Open      the session of an upgrade: its lease runs, and it can be found, before its client knows its id
//	Start     both connections are the relay's; the session lasts until either side, a limit, its lease or Drain ends it
//	Release   if it comes to nothing instead
//	Renew     another token of the same subject lets it live on
//
// The relay moves a session's bytes and knows nothing of tokens; the lease knows when to ask again and nothing of sockets. What
// they have in common is one [Session]. What a session keeps is data: who it is (Info) and by which credential (auth.Grant).
//
// # Invariants
//
//   - A session whose credential can end has its lease registered before the relay has it.
//   - Its lease and its slot are released exactly once: by Release before Start, by the relay's end after it.
//   - Of its request it keeps copies of a few short strings, and the credential where that is to be verified again.
package session
