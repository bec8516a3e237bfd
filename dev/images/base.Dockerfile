FROM scratch
ADD base.tar /
ENV LANG=C.UTF-8
CMD ["python3"]
