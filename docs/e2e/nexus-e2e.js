// End-to-end encryption for Nexus chat messages, on WebCrypto alone: browsers and Node 20. The server stores and carries
// what this makes and can read none of it. What it protects and what not: docs/e2e.md.
//
//   const api = directory('https://nexus.example.com', () => token);
//   const device = await createDevice();          // keep it: see save and restore
//   await api.publish(device);
//   socket.emit('sendMessage', { receiverId: 'bob', encrypted: await encrypt(device, 'alice', 'bob', 'Hello', api) });
//   socket.on('message:new', async (m) => show(m.encrypted ? await decrypt(device, 'bob', m, api) : m.content));

const subtle = globalThis.crypto.subtle;
const curve = { name: 'ECDH', namedCurve: 'P-256' };
const utf8 = new TextEncoder();

const toBase64 = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes)));
const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const newPair = (extractable) => subtle.generateKey(curve, extractable, ['deriveBits']);
const publicText = async (pair) => toBase64(await subtle.exportKey('raw', pair.publicKey));
const publicKey = (text) => subtle.importKey('raw', fromBase64(text), curve, true, []);
const agree = (privateKey, publicKey) => subtle.deriveBits({ name: 'ECDH', public: publicKey }, privateKey, 256);

// createDevice makes a device's keys: an identity key, and one-time keys that each serve a single message. Private keys
// cannot be exported; CryptoKey objects can be put into IndexedDB as they are.
export async function createDevice(oneTimeKeys = 50, extractable = false) {
  const device = { id: crypto.randomUUID(), identity: await newPair(extractable), prekeys: new Map(), known: new Map() };
  await addPrekeys(device, oneTimeKeys, extractable);
  return device;
}

// addPrekeys makes further one-time keys; publish the device again afterwards.
export async function addPrekeys(device, n, extractable = false) {
  for (let i = 0; i < n; i++) device.prekeys.set(crypto.randomUUID(), await newPair(extractable));
}

// fingerprint is what two people compare to be sure that the server gave them each other's key: 12 groups of 5 digits.
export async function fingerprint(identityKey) {
  const sum = new Uint8Array(await subtle.digest('SHA-256', fromBase64(identityKey)));
  return Array.from({ length: 12 }, (_, i) => String(((sum[2 * i] << 8) | sum[2 * i + 1]) % 100000).padStart(5, '0')).join(' ');
}

// directory talks to the server's key directory.
export function directory(base, token, fetch = globalThis.fetch) {
  const call = async (method, path, body) => {
    const r = await fetch(base + path, { method, body: body && JSON.stringify(body),
      headers: { authorization: 'Bearer ' + token(), 'content-type': 'application/json' } });
    if (!r.ok) throw new Error(`${method} ${path}: ${r.status}`);
    return r.json();
  };
  return {
    async publish(device) {
      const prekeys = await Promise.all([...device.prekeys].slice(0, 100).map(async ([id, pair]) => ({ id, key: await publicText(pair) })));
      await call('PUT', '/keys', { deviceId: device.id, identityKey: await publicText(device.identity), prekeys });
    },
    left: async (device) => (await call('GET', '/keys')).devices.find((d) => d.deviceId === device.id)?.prekeys ?? 0,
    remove: (deviceId) => call('DELETE', '/keys/' + encodeURIComponent(deviceId)),
    devices: async (user, prekeys = true) => (await call('GET', `/users/${encodeURIComponent(user)}/keys?prekeys=${prekeys}`)).devices,
  };
}

// trust remembers a device's identity key at first sight and refuses another one later.
function trust(device, user, deviceId, identityKey) {
  const name = user + '/' + deviceId, before = device.known.get(name);
  if (before !== undefined && before !== identityKey) throw new Error(`the identity key of ${user}'s device has changed: compare fingerprints`);
  device.known.set(name, identityKey);
}

// messageKey binds the secret to who writes to whom, from which device to which.
async function messageKey(secrets, context) {
  const all = new Uint8Array(secrets.length * 32);
  secrets.forEach((s, i) => all.set(new Uint8Array(s), 32 * i));
  const material = await subtle.importKey('raw', all, 'HKDF', false, ['deriveKey']);
  return subtle.deriveKey({ name: 'HKDF', hash: 'SHA-256', salt: new Uint8Array(32), info: utf8.encode('nexus-e2e-1 ' + JSON.stringify(context)) },
    material, { name: 'AES-GCM', length: 256 }, false, ['encrypt', 'decrypt']);
}

// encrypt makes the `encrypted` member of sendMessage: the text for each device of the receiver, and for the sender's
// other devices.
export async function encrypt(device, me, receiver, text, api) {
  const ephemeral = await newPair(false), eph = await publicText(ephemeral), identityKey = await publicText(device.identity);
  const targets = [];
  for (const user of new Set([receiver, me])) {
    for (const d of await api.devices(user)) if (d.deviceId !== device.id) targets.push([user, d]);
  }
  if (!targets.some(([user]) => user === receiver) && receiver !== me) throw new Error(`${receiver} has no device with keys`);
  const to = {};
  for (const [user, d] of targets) {
    trust(device, user, d.deviceId, d.identityKey);
    const theirs = await publicKey(d.identityKey);
    const secrets = [await agree(ephemeral.privateKey, theirs), await agree(device.identity.privateKey, theirs)];
    if (d.prekey) secrets.push(await agree(ephemeral.privateKey, await publicKey(d.prekey.key)));
    const key = await messageKey(secrets, [me, device.id, receiver, user, d.deviceId, eph, d.prekey?.id ?? null]);
    const iv = crypto.getRandomValues(new Uint8Array(12));
    to[d.deviceId] = { prekey: d.prekey?.id ?? null, iv: toBase64(iv), text: toBase64(await subtle.encrypt({ name: 'AES-GCM', iv }, key, utf8.encode(text))) };
  }
  return { v: 1, from: { deviceId: device.id, identityKey }, eph, to };
}

// decrypt reads a message of message:new or message:sent; it throws where the message is not for this device, was
// changed on its way, or comes from a key that the sender's device did not have before. A one-time key is gone afterwards:
// keep the text.
export async function decrypt(device, me, message, api) {
  const { v, from, eph, to } = message.encrypted, mine = to?.[device.id];
  if (v !== 1 || !mine) throw new Error('not encrypted for this device');
  const sender = message.senderId;
  if (!device.known.has(sender + '/' + from.deviceId)) {
    const listed = (await api.devices(sender, false)).find((d) => d.deviceId === from.deviceId);
    if (listed?.identityKey !== from.identityKey) throw new Error(`${sender} has no such device`);
  }
  trust(device, sender, from.deviceId, from.identityKey);
  const ephemeral = await publicKey(eph);
  const secrets = [await agree(device.identity.privateKey, ephemeral), await agree(device.identity.privateKey, await publicKey(from.identityKey))];
  if (mine.prekey) {
    const pair = device.prekeys.get(mine.prekey);
    if (!pair) throw new Error('the one-time key of this message was used already');
    secrets.push(await agree(pair.privateKey, ephemeral));
  }
  const key = await messageKey(secrets, [sender, from.deviceId, message.receiverId, me, device.id, eph, mine.prekey]);
  const text = await subtle.decrypt({ name: 'AES-GCM', iv: fromBase64(mine.iv) }, key, fromBase64(mine.text));
  device.prekeys.delete(mine.prekey);
  return new TextDecoder().decode(text);
}
