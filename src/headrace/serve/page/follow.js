// Keeps the end of a growing page in sight, until the reader scrolls up.

const NEAR = 24;

export class Follow {
  /** `scroller` scrolls `content`; `jump` is a button that takes the reader back to the end. */
  constructor(scroller, content, jump) {
    this.scroller = scroller;
    this.jump = jump;
    this.on = true;
    this.last = 0;
    scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    jump.addEventListener("click", () => this.toEnd());
    const resized = new ResizeObserver(() => this.on && this.toEnd());
    resized.observe(content);
    resized.observe(scroller);
  }

  toEnd() {
    this.on = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.last = this.scroller.scrollTop;
    this.jump.hidden = true;
  }

  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const near = scrollHeight - clientHeight - scrollTop < NEAR;
    // Only a way up lets go: below, the text may just have grown.
    if (near) this.on = true;
    else if (scrollTop < this.last) this.on = false;
    this.last = scrollTop;
    this.jump.hidden = this.on;
  }
}
