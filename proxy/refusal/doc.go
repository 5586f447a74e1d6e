// Package refusal says why a request is refused, and how that reads: as an HTTP answer, as a Close frame, as a line in the log
// and as a label of a metric.
//
// A step of the gate returns a [Refusal]. Whoever answers the client asks it for its [Refusal.Response], or its
// [Refusal.CloseFrame] where the client has its 101 already, and hands it to the [Reporter], which alone counts and logs.
// A new reason to refuse is a constant here and a row in the table of answers.
package refusal
