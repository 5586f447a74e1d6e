import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Backoff } from '../dist/backoff.js';
import { judge } from '../dist/verdict.js';

test('the back-off doubles, is capped, and begins anew after a connection that lived', () => {
  const backoff = new Backoff({ min: 100, max: 1000, steady: 5000 });
  for (const [lived, bound] of [[0, 100], [0, 200], [4999, 400], [0, 800], [0, 1000], [0, 1000], [5000, 100], [0, 200]]) {
    const wait = backoff.next(lived);
    assert.ok(wait >= 0 && wait <= bound, `${wait} after ${lived}, want at most ${bound}`);
  }
  const waits = Array.from({ length: 1000 }, () => new Backoff({ min: 1000 }).next(0)); // full jitter: spread over all of it
  assert.ok(Math.min(...waits) < 100 && Math.max(...waits) > 900);
});

test('what a close code means', () => {
  for (const [code, reason, again, wait, credential] of [
    [1000, '', false, 0, false], [1001, 'going away', true, 0, false], [1002, '', false, 0, false], [1006, '', true, 0, false],
    [1008, 'message rate', false, 0, false], [1009, '', false, 0, false], [1011, '', true, 0, false], [1012, '', true, 0, false],
    [1013, 'too many open connections; retry in 7 s', true, 7000, false], [3000, 'token expired', true, 0, true],
    [3003, 'kicked', false, 0, false], [3008, 'no pong', true, 0, false], [4000, 'retry in 3 s', false, 3000, false],
  ]) {
    const verdict = judge(code, reason);
    assert.deepEqual([verdict.again, verdict.wait, verdict.credential], [again, wait, credential], `${code} ${reason}`);
  }
});
