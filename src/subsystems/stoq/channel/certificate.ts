import { generateKeyPairSync, sign } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { concat, fromHex, hex, utf8 } from '../../../base/bytes.ts';
import { sha256 } from '../../../base/digest.ts';

/** A key pair for TLS that lives as long as this process, and the self-signed certificate that TLS wants around it. */
export interface TransportKey {
  /** PEM. */
  readonly key: string;
  readonly cert: string;
  /** SHA-256 of the subject public key info: what a hello vouches for. */
  readonly id: string;
}

/** AlgorithmIdentifier of Ed25519. */
const ED25519 = fromHex('300506032b6570');

/** The certificate says nothing by itself, so it is the same for everybody but for the key: identity is the hello's business. */
export function makeTransportKey(): TransportKey {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const spki = new Uint8Array(publicKey.export({ format: 'der', type: 'spki' }));
  const commonName = der(0x30, fromHex('0603550403'), der(0x0c, utf8('hypermesh')));
  const name = der(0x30, der(0x31, commonName));
  const validity = der(0x30, der(0x17, utf8('200101000000Z')), der(0x17, utf8('491231235959Z')));
  const version = der(0xa0, fromHex('020102'));
  const serial = fromHex('020101');
  const body = der(0x30, version, serial, ED25519, name, validity, name, spki);
  const signature = der(0x03, Uint8Array.of(0), new Uint8Array(sign(null, body, privateKey)));
  const certificate = der(0x30, body, ED25519, signature);
  const lines = Buffer.from(certificate).toString('base64').replace(/.{64}/g, '$&\n');
  return {
    key: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string,
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    id: hex(sha256(spki)),
  };
}

/** Which key the other end of a TLS session has proved to hold; null when it showed none. */
export function transportOf(socket: TLSSocket): string | null {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return null;
  return hex(sha256(new Uint8Array(certificate.publicKey.export({ format: 'der', type: 'spki' }))));
}

/** Tag, length (at most 64 KiB), content. */
function der(tag: number, ...parts: Uint8Array[]): Uint8Array {
  const content = concat(...parts);
  const { length } = content;
  if (length < 128) return concat(Uint8Array.of(tag, length), content);
  if (length < 256) return concat(Uint8Array.of(tag, 0x81, length), content);
  return concat(Uint8Array.of(tag, 0x82, length >> 8, length & 255), content);
}
