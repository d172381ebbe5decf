// Plays a stream of chunks: each has a time at which its sound begins and its picture is shown.

const LEAD = 0.12; // seconds between the arrival of the first chunk and its time: small enough to follow, large enough for a jitter

/** ``model``: seconds of a chunk, and samples a second · ``show(chunk)``: at its time · ``sounds()``: whether it is heard. */
export class Player {
  constructor(model, { show, sounds }) {
    Object.assign(this, { model, show, sounds, late: 0, made: [], timers: new Set() });
    this.context = new AudioContext();
    this.due = 0;
  }

  take(chunk) {
    const now = performance.now() / 1000;
    if (this.due && now > this.due) this.late += 1;
    if (now > this.due) this.due = now + LEAD;
    this.made = [...this.made, chunk.milliseconds].slice(-240);
    const wait = this.due - now;
    if (this.sounds()) this.play(chunk.sound, this.context.currentTime + wait);
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      this.show(chunk);
    }, 1000 * wait);
    this.timers.add(timer);
    this.due += this.model.seconds;
  }

  /** Milliseconds that the server took to make a chunk: in the middle, and at the 95th percentile. */
  get times() {
    const sorted = [...this.made].sort((a, b) => a - b), at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
    return { median: at(0.5), high: at(0.95) };
  }

  play(sound, at) {
    const bytes = Uint8Array.from(atob(sound), (letter) => letter.charCodeAt(0)), samples = new DataView(bytes.buffer);
    const buffer = this.context.createBuffer(1, bytes.length / 2, this.model.rate), wave = buffer.getChannelData(0);
    for (let i = 0; i < wave.length; i++) wave[i] = samples.getInt16(2 * i, true) / 32768;
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    source.start(at);
  }

  close() {
    for (const timer of this.timers) clearTimeout(timer);
    this.context.close();
  }
}
