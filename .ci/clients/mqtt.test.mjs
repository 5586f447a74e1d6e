// MQTT over WebSocket: binary frames, the subprotocol mqtt, a message with an acknowledgement and a large one.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { Aedes } from 'aedes';
import mqtt from 'mqtt';
import { createWebSocketStream, WebSocketServer } from 'ws';
import { listen, next, startGate } from './kit.mjs';

async function start(t) {
  const broker = await Aedes.createBroker();
  const server = createServer();
  new WebSocketServer({ server, handleProtocols: (offered) => offered.has('mqtt') && 'mqtt' })
    .on('connection', (socket) => broker.handle(createWebSocketStream(socket)));
  t.after(() => broker.close());
  return startGate(t, [await listen(t, server)]);
}

test('publish, subscribe, and a client that comes back', async (t) => {
  const gate = await start(t);
  const client = mqtt.connect(`ws://${gate.host}/mqtt?token=sesame`, { reconnectPeriod: 50 });
  t.after(() => client.endAsync(true));
  await next(client, 'connect');
  await client.subscribeAsync('room/#', { qos: 1 });
  for (const payload of [Buffer.from('olá'), Buffer.alloc(300_000, 7)]) {
    const message = next(client, 'message');
    await client.publishAsync('room/1', payload, { qos: 1 });
    const [topic, got] = await message;
    assert.equal(topic, 'room/1');
    assert.ok(payload.equals(got));
  }
  const again = next(client, 'connect');
  assert.equal((await gate.kick()).reached, 1);
  await again;
  await client.publishAsync('room/2', 'x', { qos: 1 });
});

test('a wrong token', async (t) => {
  const gate = await start(t);
  const client = mqtt.connect(`ws://${gate.host}/mqtt?token=guess`, { reconnectPeriod: 0 });
  t.after(() => client.end(true));
  const ended = await Promise.race([next(client, 'connect').then(() => 'connected'), next(client, 'close').then(() => 'closed')]);
  assert.equal(ended, 'closed'); // that is all that the library tells
});
