/** The specification's create_stream for programs: content of any length, sealed for those who have a secret (docs/protocol/stream.md). */
export { createStream, openStream, type SealedSource, SealedStream, streamSecret } from '../subsystems/stoq/stream.ts';
